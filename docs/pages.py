"""Gives each pass a page of its own on the site; in the sources ``passes.md`` is one file, for those who read it there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

SECTION = re.compile(r"^## `([\w-]+)`\n", re.MULTILINE)
INTERNAL = re.compile(r"\]\((?!https?:|#)")


def on_config(config: Any) -> Any:
    """Put the pages under "Passes"."""
    _, sections = _cut(Path(config.docs_dir, "passes.md").read_text(encoding="utf-8"))
    pages = ["passes.md", *({name: f"passes/{name}.md"} for name in sections)]
    config.nav = [{"Passes": pages} if entry == {"Passes": "passes.md"} else entry for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each section of passes.md that is about a pass."""
    for name, text in _cut(files.get_file_from_path("passes.md").content_string)[1].items():
        content = f"# `{name}`\n{INTERNAL.sub('](../', text)}"
        files.append(File.generated(config, f"passes/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Leave of passes.md the introduction, and the first paragraph about each pass."""
    if page.file.src_uri != "passes.md":
        return markdown
    intro, sections = _cut(markdown)
    first = {name: text.strip().split("\n\n")[0] for name, text in sections.items()}
    return intro + "\n\n".join(f"## `{name}`\n\n{text}\n\n[All about it](passes/{name}.md)" for name, text in first.items())


def _cut(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first pass, and the section of each pass."""
    parts = SECTION.split(text)
    return parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))
