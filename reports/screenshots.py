"""Every page as a picture, at desktop and phone width: memory report, frontier, plan, training run, benchmark.

python reports/screenshots.py [FOLDER]   writes reports/mcunet-5fps.html and .png, and -desktop.png and -phone.png of
                                         mcunet-5fps, frontier, plan and run (plan-dark.png too), and of bench if
                                         bench/mobile has results. Needs playwright, Debian's chromium, the extra
                                         `report`, and the data files. FOLDER keeps plan.json and run/, which are made
                                         there if it has none.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FOLDER = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("MEDYATE_ASSETS", FOLDER / ".." / ".." / "shared" / "assets")).resolve()
REPORT = [
    "report",
    "mcunet-5fps",
    "--batch-size",
    "8",
    "--optimizer",
    "adam",
    "--num-classes",
    "10",
    "--budget",
    "64MB",
]
BENCH = FOLDER / "bench" / "mobile"
DATA = ["--data", f"tar:{ASSETS / 'datasets' / 'sign_digits.tar'}"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDTHS = {"desktop": (1280, 2600), "phone": (390, 2600)}
MOST_BYTES = 300_000


def medyate(*arguments: object) -> None:
    """Run the command line."""
    subprocess.run([sys.executable, "-m", "medyate_planner", *map(str, arguments)], check=True)


def make_run(folder: Path) -> None:
    """Importance, plan with its explanation, and training, as in sign_digits.sh with seed 0."""
    importance, plan = folder / "importance.safetensors", folder / "plan.json"
    medyate("rank", "mcunet-5fps", *DATA, "--num-classes", 10, "-o", importance, "--force")
    asked = ("--num-classes", 10, "--budget", "512kB", "--importance", importance, "--explain")
    medyate("plan", "mcunet-5fps", *asked, "-o", plan, "--force")
    medyate("train", plan, *DATA, "--epochs", 4, "--out", folder / "run", "--force")


def photograph(browser: Browser, page_file: Path, name: str, size: tuple[int, int], scheme: str = "light") -> None:
    """The top of a page, in 256 colours."""
    page = browser.new_page(viewport={"width": size[0], "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(page_file.as_uri())
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    top = taken.crop((0, 0, taken.width, min(taken.height, size[1])))
    file = FOLDER / f"{name}.png"
    top.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert file.stat().st_size < MOST_BYTES, f"{file}: {file.stat().st_size:,} B"


def main() -> None:
    """Make the pages and the figure with the command line, and photograph the pages."""
    from playwright.sync_api import sync_playwright

    for ending in ("html", "png"):
        medyate(*REPORT, "-o", FOLDER / f"mcunet-5fps.{ending}", "--force")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        if not (folder / "run" / "metrics.jsonl").exists():
            make_run(folder)
        pages = {"mcunet-5fps": FOLDER / "mcunet-5fps.html"}
        for name, file in (
            ("frontier", FOLDER / "frontier.json"),
            ("plan", folder / "plan.json"),
            ("run", folder / "run"),
        ):
            pages[name] = Path(temporary) / f"{name}.html"
            medyate("show", file, "--html", "-o", pages[name])
        if (BENCH / "results.jsonl").exists():
            pages["bench"] = Path(temporary) / "bench.html"
            medyate("show", BENCH, "--html", "-o", pages["bench"])
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            for name, page_file in pages.items():
                for device, size in WIDTHS.items():
                    photograph(browser, page_file, f"{name}-{device}", size)
            photograph(browser, pages["plan"], "plan-dark", WIDTHS["desktop"], "dark")
            browser.close()


if __name__ == "__main__":
    main()
