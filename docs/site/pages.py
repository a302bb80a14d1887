"""What the site takes from outside `docs/`: the reference and the root's own pages."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Pages of the root and their names in the site.
OWN = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
REFERENCE = re.compile(r"api/(\w+)\.md")
#: What a room does not export itself, on its page below what it does: a module, and which names of
#: it, if not all.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "interventions": {
        "interventions.decoupling": (),
        "interventions.restoration": (
            "BY_GRADIENT", "SIGN_MATCHED", "AT_RANDOM", "BY_DIFFERENCE", "Ranking",
        ),
    },
    "experiments": {
        "experiments.registry": (),
        "experiments.inputs": (),
        "experiments.results": (),
        "experiments.patch": ("PatchSettings", "run_patch"),
        "experiments.directions": (),
        "experiments.steer": (),
        "experiments.restore": (),
        "experiments.diff": (),
        "experiments.token_shift": (),
        "experiments.decouple": (),
        "experiments.batch": (),
        "experiments.figures": (),
        "experiments.reporting": (),
    },
}  # fmt: skip
_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.S | re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in OWN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    for name in _named(config.nav):
        if found := REFERENCE.fullmatch(name):
            files.append(File.generated(config, name, content=_reference(found[1])))
    there = {file.src_uri for file in files.documentation_pages()}
    config.nav = _kept(config.nav, there)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has their targets; of others, such as code, keep the words."""
    here = page.file.src_uri
    source = {name: root for root, name in OWN.items()}.get(here, f"docs/{here}")

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        full = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        name = OWN.get(full) or full.removeprefix("docs/")
        if full not in OWN and not full.startswith("docs/"):
            return words
        start = posixpath.dirname(here) or "."
        return f"{picture}[{words}]({posixpath.relpath(name, start)}{hash_}{anchor})"

    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(led, part) for part in parts)


def _reference(room: str) -> str:
    """The page of a room: what it exports, then the parts that have a name of their own."""
    sections = [f"# {room}", f"`import {room}`", f"::: {room}"]
    sections += [_section(f"{room}.{name}.{name}", path=False) for name in _hidden(room)]
    sections += [_section(part, names) for part, names in PARTS.get(room, {}).items()]
    return "\n\n".join(sections) + "\n"


def _section(module: str, members: tuple[str, ...] = (), *, path: bool = True) -> str:
    options = {
        "show_root_heading": "true",
        "show_root_toc_entry": "true",
        "show_root_full_path": str(path).lower(),
    }
    if members:
        options["members"] = f"[{', '.join(members)}]"
    lines = "".join(f"\n      {name}: {value}" for name, value in options.items())
    return f"::: {module}\n    options:{lines}"


def _hidden(room: str) -> list[str]:
    """Functions and classes that the room exports under the name of the module that has them.

    To a reader of the source such a name is the module; Python has what was imported.
    """
    exported: list[str] = []
    for node in ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = ast.literal_eval(node.value)
    found = []
    for name in exported:
        module = ROOT / room / f"{name}.py"
        if module.is_file():
            body = ast.parse(module.read_text(encoding="utf-8")).body
            if any(getattr(node, "name", "") == name for node in body):
                found.append(name)
    return found


def _named(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inside = nav.values() if isinstance(nav, dict) else nav
    return [name for part in inside for name in _named(part)]


def _kept(nav: Any, there: set[str]) -> Any:
    """The navigation without pages that this tree does not have."""
    if isinstance(nav, dict):
        kept = {title: _kept(part, there) for title, part in nav.items()}
        return {title: part for title, part in kept.items() if part}
    if isinstance(nav, list):
        return [kept for part in nav if (kept := _kept(part, there))]
    return nav if nav in there else None
