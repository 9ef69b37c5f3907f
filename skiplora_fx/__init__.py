"""LoRA fine-tuning that skips parts of the backward, as a torch.compile backend.

``model.compile(backend="skiplora", options={"threshold": 0.05})`` needs no import. What is here watches and
steers a model compiled so.
"""

from . import policy
from .apply import apply
from .attach import attach
from .config import SkipLoraConfig
from .divergence import DivergenceWarning
from .errors import ConfigError, FileError, InternalError, SkipLoraError, UsageError
from .explain import Explanation, explain
from .failures import FallbackWarning
from .graphdiff import GraphDiff, diff
from .live import set_threshold, sites
from .live_site import SiteState
from .nothing_found import NoLoRAWarning
from .report import report
from .wanted_inputs import InputGradientWarning

__all__ = [
    "ConfigError",
    "DivergenceWarning",
    "Explanation",
    "FallbackWarning",
    "FileError",
    "GraphDiff",
    "InputGradientWarning",
    "InternalError",
    "NoLoRAWarning",
    "SiteState",
    "SkipLoraConfig",
    "SkipLoraError",
    "UsageError",
    "apply",
    "attach",
    "diff",
    "explain",
    "policy",
    "report",
    "set_threshold",
    "sites",
]

__version__ = "0.1.0"
