from kit.emit import emit as emit
from kit.profile import profile as profile
from kit.submit import submit as submit

__version__: str
