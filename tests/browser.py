"""A page on a phone: a browser opens it from disk in a narrow frame and says what it shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

#: asks the page, in a frame as wide as a phone, and writes the answer into its own title
FRAME = """<!doctype html><body style="margin:0">
<iframe style="border:0;width:390px;height:844px" srcdoc="{page}"></iframe>
<script>
setTimeout(() => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const count = (what) => page.querySelectorAll(what).length;
  const words = (what) => [...page.querySelectorAll(what)].map((one) => one.textContent.trim());
  const overflow = () => root.scrollWidth - root.clientWidth;
  const settled = () => new Promise((go) => setTimeout(go, 100));
  const ask = async () => {{ {asked} }};
  ask().catch(String).then((found) => {{ document.title = JSON.stringify(found); }});
}}, 1000);
</script>"""


def is_installed() -> bool:
    """Whether there is a browser."""
    return shutil.which("chromium") is not None


def on_a_phone(text: str, asked: str, folder: Path) -> Any:
    """What ``asked`` returns; an error's text if it throws one.

    It is the body of an asynchronous function, and may use ``frame``, its document ``page`` with the element
    ``root``, ``count`` and ``words`` of a selector, ``overflow()`` in pixels, and ``await settled()``.
    """
    path = folder / "frame.html"
    path.write_text(FRAME.format(page=html.escape(text), asked=asked), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout)
    return json.loads(html.unescape(title))
