"""mkdocs hook: pages link to files of the repository by relative paths, which also work where pages are read there.

In the site, figures of the repository are shown from copies, and the files in PAGES are pages. The link to any other
file becomes its text, since the site does not hold it. The mark `notest` of a code block, for tests/docs, is removed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"kernels/README.md": "kernels.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are pages of the site, and their names in there."""

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^):#]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds PAGES, and the figures that pages show."""
    root = Path(config.config_file_path).parent
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / path)))
    for page_file in list(files.documentation_pages()):
        for link in _LINK.finditer(page_file.content_string):
            path = _repository_path(page_file, link)
            if link["image"] and not path.startswith("docs/") and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def in_site(link: re.Match[str]) -> str:
        path = _repository_path(page.file, link)
        name = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, path)
        if name not in files.src_uris:
            return link["text"]
        return f"{link['image']}[{link['text']}]({name}{link['anchor'] or ''})"

    return _LINK.sub(in_site, markdown).replace("```python notest", "```python")


def _repository_path(page: File, link: re.Match[str]) -> str:
    """The path, from the repository's root, of what a page links to."""
    sources = {name: path for path, name in PAGES.items()}
    source = sources.get(page.src_uri, f"docs/{page.src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
