"""LoRA fine-tuning without the backward work that does not matter, as a torch.compile backend.

``model.compile(backend="skiplora", options={"threshold": 0.05})`` needs no import. What is here watches and
steers a model compiled so.
"""

from .config import SkipLoraConfig
from .errors import ConfigError, InternalError, SkipLoraError, UsageError
from .report import report
from .runtime import SiteState, attach, set_threshold, sites

__all__ = [
    "ConfigError",
    "InternalError",
    "SiteState",
    "SkipLoraConfig",
    "SkipLoraError",
    "UsageError",
    "attach",
    "report",
    "set_threshold",
    "sites",
]

__version__ = "0.1.0"
