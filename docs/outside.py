"""For mkdocs: pages link to rows and examples as they lie in the repository; the site has copies of them."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?:\.\./)+((?:bench/results|examples)/[^)]+)\)")


def on_files(files, config):
    for path in (*ROOT.glob("bench/results/*.jsonl"), *ROOT.glob("examples/*.py")):
        name = f"outside/{path.relative_to(ROOT).as_posix()}.txt"  # browsers show it
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **kwargs):
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(rf"]({up}outside/\1.txt)", markdown)
