"""Take the picture of the app, ``app.png``, with the English model in the package.

The recording is the first mixture of the test actors with an angry part, as in ``recordings.py``.
The script needs the extra ``app``, selenium, Chromium and chromedriver.

> python docs/app_screenshot.py --ravdess RAVDESS --ssl whisper-base
"""

import argparse
import shutil
import socket
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from open_model import test_mixtures
from PIL import Image  # matplotlib depends on it
from recordings import COLOURS, EMOTION
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from ent_brain.app import serve
from ent_brain.errors import exit_on_input_error
from ent_brain.inference import EmotionTransducer

FLAGS = (
    *("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a microphone
)
WIDTH = 1100
"""Width of the window in pixels."""

MARGIN = 24
"""Pixels below the words and the keys of the player, where the picture ends."""

PATIENCE = 120
"""Time in seconds after which the app should have answered."""

TIDY = """
scrollTo(0, 0);
document.querySelector("select option").textContent = "Microphone";
"""
"""JavaScript that scrolls to the top, and names Chromium's fake microphone as a real one."""


@exit_on_input_error
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ravdess", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--ssl", metavar="FOLDER", help="openai/whisper-base")
    parser.add_argument("--recording", type=Path, help="another recording than the mixture")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("app.png"))
    options = parser.parse_args()
    model = EmotionTransducer.open_english(ssl=options.ssl)
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        scratch = Path(scratch)
        path = options.recording or choose(options.ravdess, scratch)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        app, address, _ = serve(model, port=port, prevent_thread_lock=True)
        try:
            take(address, shutil.copy(path, scratch / f"talk{path.suffix}"), options.output)
        finally:
            app.get_blocks().close()
    Image.open(options.output).quantize(COLOURS).save(options.output, optimize=True)
    print(f"{options.output.name}: {path.name}, {options.output.stat().st_size // 1000} kB")


def choose(ravdess, scratch):
    """Path of the first mixture with an angry part."""
    mixtures = test_mixtures(ravdess, scratch)
    return next(path for path, entry in mixtures.items() if entry["emotion"] == EMOTION)


def take(address, path, picture):
    """Upload a recording, and save the picture of the page with its result."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--window-size={WIDTH},1000"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        wait = WebDriverWait(browser, PATIENCE)
        browser.get(address)
        find = browser.find_element
        wait.until(lambda _: find("css selector", "input[type=file]")).send_keys(str(path))
        wait.until(lambda _: find("css selector", "a[download]"))
        browser.switch_to.frame(find("css selector", "#player iframe"))
        words = wait.until(lambda _: browser.find_elements("css selector", ".word"))
        words[len(words) // 2].click()
        wait.until(lambda _: find("css selector", ".word[aria-current]"))
        keys = find("id", "keys").rect  # what follows is below the picture
        browser.switch_to.default_content()
        browser.execute_script(TIDY)
        top = find("css selector", "#player iframe").rect["y"]
        height = int(top + keys["y"] + keys["height"] + MARGIN)
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    sys.exit(main())
