"""The settings: what they are, where they come from, and what is said when one is wrong.

Sources, later ones over earlier ones: the defaults, a TOML file, `ORCHESTRATOR_<SECTION>__<KEY>`
variables, and what the caller gives explicitly (flags). The API key is no setting: it is read
from `RECOUP_API_KEY` or from a file whenever it is needed, and stored nowhere.
"""

from orchestrator.config.key import KEY_VARIABLE, KeySource, fingerprint
from orchestrator.config.load import FILE_VARIABLE, load_settings
from orchestrator.config.settings import Settings
from orchestrator.config.values import parse_duration, safe_url

__all__ = [
    "FILE_VARIABLE",
    "KEY_VARIABLE",
    "KeySource",
    "Settings",
    "fingerprint",
    "load_settings",
    "parse_duration",
    "safe_url",
]
