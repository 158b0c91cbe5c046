"""ZenBot: specialise a small Llama into a counsellor for sleep and stress.

The numbered notebooks in `nbs/` are the source of this package, and its best documentation:
`zenbot notebooks DIR` copies them to a folder of yours. A room is a module; nothing is imported before it is asked for.

    from zenbot.opening import open_model              # a run, a folder, an adapter or a GGUF file that is what it says it is
    from zenbot.chat import guarded, writer            # an answer with the guard before it and the check behind it
    from zenbot.guard import decide                    # what a message needs: tier, route, reasons, reply

    from zenbot.pipeline import run_profile            # the whole story into one folder; `zenbot run demo`
    from zenbot.prompts import tokenize_and_mask       # rows -> token ids and labels
    from zenbot.training import train                  # one loop: full, LoRA, 8 and 4 bits; resumes exactly
    from zenbot.pruning import shrink                  # a really smaller model
    from zenbot.generation import generate_answer, generate_answers
    from zenbot.evaluation import evaluate             # leaderboards with intervals and paired tests
    from zenbot.statistics import compare, interval
    from zenbot.perturbations import perturb           # the same question in other words
    from zenbot.sweeps import run_sweep                # many runs, each once
    from zenbot.llamacpp import to_gguf                # one file for llama.cpp

`help(zenbot.guard)` and so on tell what a room is for and what it offers; the comments of a signature in the source give shapes and units.
Bad input raises `zenbot.core.BadInput`, a run that breaks `zenbot.core.RunFailed`, each with a sentence that says what to do.
It is an engineering project, not a clinician and not a medical device.
"""
import os
import warnings
from importlib.metadata import version

__version__ = version("zenbot")

for _name, _value in {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(_name, _value)
warnings.filterwarnings("ignore", message="IProgress not found")   # tqdm asks for widgets; a plain bar will do
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")   # peft 0.21 asks transformers 5 by the old name
