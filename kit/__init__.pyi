from kit.emit import emit as emit
from kit.submit import submit as submit
from kit.tools.profile import profile as profile

__version__: str
