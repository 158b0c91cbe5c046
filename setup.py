"""A thin bridge: everything that setuptools needs stands in settings.ini."""
from configparser import ConfigParser

from setuptools import setup

config = ConfigParser()
config.read("settings.ini", encoding="utf-8")
meta = config["DEFAULT"]
lines = lambda key: meta.get(key, "").split("\n")[1:]

setup(
    version=meta["version"], description=meta["description"], author=meta["author"], license=meta["license"],
    keywords=meta["keywords"].split(), python_requires=f">={meta['min_python']}",
    install_requires=lines("requirements"), extras_require={extra: lines(extra) for extra in ("dev", "lab", "cluster", "llamacpp", "preferences", "bench", "harness")},
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
    packages=["zenbot", "zenbot.notebooks"], package_dir={"zenbot": "zenbot", "zenbot.notebooks": "nbs"},
    package_data={"zenbot": ["profiles/**", "safety/**", "sample/**", "templates/**"], "zenbot.notebooks": ["*.ipynb"]},
    entry_points={"console_scripts": ["zenbot=zenbot.cli:main"], "nbdev": ["zenbot=zenbot._modidx:d"]},
)
