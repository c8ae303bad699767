from local_eval.api import assess as assess
from local_eval.api import prepare as prepare
from local_eval.api import report as report
from local_eval.api import retrain as retrain
from local_eval.api import score_arrays as score_arrays
from local_eval.api import unlearn as unlearn
from local_eval.setting import Setting as Setting
