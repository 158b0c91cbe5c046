"""ZenBot: specialise a small Llama into a counsellor for sleep and stress.

The numbered notebooks in `nbs/` are the source of this package, and its best documentation:
`zenbot notebooks DIR` copies them to a folder of yours.
"""
import os
import warnings
from importlib.metadata import version

__version__ = version("zenbot")

for _name, _value in {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(_name, _value)
warnings.filterwarnings("ignore", message="IProgress not found")   # tqdm asks for widgets; a plain bar will do
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")   # peft 0.21 asks transformers 5 by the old name
