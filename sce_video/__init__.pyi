# What type checkers see: the functions of api.py, which the package itself imports with their first use.
from .api import embed as embed
from .api import evaluate as evaluate
from .api import finetune as finetune
from .api import load_classifier as load_classifier
from .api import load_encoder as load_encoder
from .api import pretrain as pretrain
from .api import retrieve as retrieve

__version__: str
