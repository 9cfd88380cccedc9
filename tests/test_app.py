"""The app in Chromium, with a small random model."""

import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio")

from test_page import find, serious_faults, set_colors, start_chromium, wait  # noqa: E402

from ent_brain import app, cli  # noqa: E402
from ent_brain.annotation import Annotation  # noqa: E402
from ent_brain.errors import InputError  # noqa: E402
from ent_brain.export import export  # noqa: E402
from ent_brain.formats import FORMATS  # noqa: E402
from ent_brain.inference import EmotionTransducer  # noqa: E402

# Gradio's own calls of pandas.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*no_silent_downcasting", "ignore:The copy keyword is deprecated"
)

RATE = 16000
MINUTES = 30
HOSTILE = "<img src=x onerror=alert(1)><script>.wav"
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def write(path, seconds=1.5, channels=1, rate=RATE):
    wav = 0.1 * np.random.default_rng(0).normal(size=(int(seconds * rate), channels))
    soundfile.write(path, wav, rate)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("model") / "pretrained"
    export(trained(), folder, 2.0)
    return EmotionTransducer.from_hparams(source=folder)


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """A running app: its address, and its temporary folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))
        patch.setenv("GRADIO_TEMP_DIR", "")  # the app sets it
        served = app.serve(model, port=port, minutes=MINUTES, prevent_thread_lock=True)
        folder = next(Path(app.tempfile.gettempdir()).iterdir())
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}", folder=folder, app=served[0])


@pytest.fixture
def taken():
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    driver = start_chromium(*MICROPHONE)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, served):
    browser.get(served.address)
    wait(browser, "document.querySelector('input[type=file]')")
    return browser


def upload(browser, path):
    find(browser, "input[type=file]").send_keys(str(path))


def wait_for_player(browser, seconds=20):
    wait(browser, "document.querySelector('#player iframe').srcdoc", seconds)
    browser.switch_to.frame(find(browser, "#player iframe"))
    wait(browser, "document.querySelector('#words .word, #words')?.textContent")


def test_an_uploaded_file_is_shown_played_and_downloaded(opened, model, tmp_path):
    path = write(tmp_path / "speech.wav")
    expected = model.annotate_file(path)
    upload(opened, path)
    wait_for_player(opened)
    words = find(opened, "#words").find_elements("css selector", ".word")
    assert len(words) == len(expected.words) > 0
    words[-1].click()
    wait(opened, f"Math.abs(audio.currentTime - {expected.words[-1].start}) < 0.02")
    find(opened, "#play").click()
    wait(opened, "document.querySelector('.word[aria-current]')")
    opened.switch_to.default_content()
    wait(opened, f"document.querySelectorAll('a[download]').length > {len(FORMATS)}")
    links = [each.get_attribute("href") for each in opened.find_elements("tag name", "a")]
    for each in FORMATS.values():
        assert any(link and link.endswith(f"speech.{each.ending}") for link in links)
    [json] = [link for link in links if link and link.endswith("speech.json")]
    assert Annotation.from_json(urlopen(json).read().decode()) == expected


def test_the_microphone_is_heard(opened):
    wait(opened, "document.querySelector('button.record')")
    find(opened, "button.record").click()
    wait(opened, "document.querySelector('button.stop-button')?.offsetParent")
    time.sleep(1.5)
    find(opened, "button.stop-button").click()
    wait_for_player(opened)
    assert opened.execute_script("return audio.duration") > 1
    opened.switch_to.default_content()


def test_a_broken_file_with_a_hostile_name_is_told_as_text(opened, tmp_path):
    path = tmp_path / HOSTILE
    path.write_text("no sound")
    upload(opened, path)
    wait(opened, "document.querySelector('.toast-body')")
    assert "cannot be read" in find(opened, ".toast-body").get_property("textContent")
    assert not opened.find_elements("css selector", "img[src=x]")
    path.unlink()
    write(path)
    opened.refresh()
    wait(opened, "document.querySelector('input[type=file]')")
    upload(opened, path)
    wait_for_player(opened)
    assert "onerror" in find(opened, "h1").text
    assert not opened.find_elements("css selector", "img")
    opened.switch_to.default_content()
    assert not opened.find_elements("css selector", "img[src=x]")


def test_a_recording_that_is_too_long_is_refused(opened, tmp_path):
    upload(opened, write(tmp_path / "long.wav", 60 * MINUTES + 30, rate=1000))
    wait(opened, "document.querySelector('.toast-body')")
    assert "lasts 30.5 minutes. Cut it to 30 minutes." in find(opened, ".toast-body").get_property(
        "textContent"
    )


def test_the_longest_recording_is_shown_and_played(long_mode, opened, tmp_path):
    wav, _ = soundfile.read(write(tmp_path / "short.wav", seconds=20))
    soundfile.write(tmp_path / "long.flac", np.tile(wav, 3 * MINUTES), RATE)
    upload(opened, tmp_path / "long.flac")
    wait_for_player(opened, seconds=300)
    wait(opened, f"Math.abs(audio.duration - {60 * MINUTES}) < 1")
    last = opened.find_elements("css selector", ".word")[-1]
    last.click()
    wait(opened, "[...document.querySelectorAll('.word')].at(-1).hasAttribute('aria-current')")
    started = opened.execute_script("return audio.currentTime")
    find(opened, "#play").click()
    assert started > 60 * MINUTES - 60
    wait(opened, f"audio.currentTime > {started + 0.1} || audio.ended")
    opened.switch_to.default_content()


def test_an_annotation_can_be_cancelled(opened, served, tmp_path, monkeypatch):
    shares = []

    def annotate_slowly(self, path, progressbar, channel):
        for step in range(10_000):
            shares.append(step)
            progressbar(step / 10_000)
            time.sleep(0.01)

    monkeypatch.setattr(EmotionTransducer, "annotate_file", annotate_slowly)
    upload(opened, write(tmp_path / "slow.wav"))
    cancel = next(b for b in opened.find_elements("tag name", "button") if b.text == "Cancel")
    wait(opened, "document.querySelector('#player').innerText.includes('%')")
    cancel.click()
    wait(opened, "[...document.querySelectorAll('button')].find(b => b.innerText == 'Cancel')"
         ".disabled")  # fmt: skip
    count = len(shares)
    time.sleep(0.2)
    assert len(shares) == count < 9000


def test_nothing_is_left_when_the_page_is_closed(opened, served, tmp_path):
    upload(opened, write(tmp_path / "private.wav"))
    wait_for_player(opened)
    opened.switch_to.default_content()
    assert list(served.folder.rglob("private.*"))
    opened.get("about:blank")
    until = time.time() + 20
    while (left := list(served.folder.rglob("private*"))) and time.time() < until:
        time.sleep(0.1)
    assert not left


def test_a_phone_scrolls_only_downwards(browser, served, tmp_path):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(served.address)
        wait(browser, "document.querySelector('input[type=file]')")
        upload(browser, write(tmp_path / "two.wav", channels=2))
        wait_for_player(browser)
        width = "return [document.documentElement.scrollWidth, innerWidth]"
        inner, outer = browser.execute_script(width)
        assert inner <= outer
        browser.switch_to.default_content()
        assert browser.execute_script(width) == [390, 390]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_is_enough(opened, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    upload(opened, write(tmp_path / "keys.wav"))
    wait_for_player(opened)
    opened.switch_to.default_content()
    reached = []
    for _ in range(40):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        active = opened.switch_to.active_element
        if active.tag_name == "iframe":
            break
        reached.append(active.accessible_name)
    assert {"Annotate", "mixed"} <= set(reached) and "" not in reached
    opened.switch_to.frame(find(opened, "#player iframe"))
    for _ in range(10):
        if opened.switch_to.active_element.get_attribute("id") == "play":
            break
        ActionChains(opened).send_keys(Keys.TAB).perform()
    ActionChains(opened).send_keys(Keys.SPACE).perform()
    wait(opened, "audio.currentTime > 0.05")
    opened.switch_to.default_content()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(browser, served, tmp_path, dark):
    set_colors(browser, dark)
    browser.get(served.address)
    wait(browser, "document.querySelector('input[type=file]')")
    assert serious_faults(browser) == []
    upload(browser, write(tmp_path / "two.wav", channels=2))
    wait_for_player(browser)
    find(browser, "#word-details summary").click()
    assert serious_faults(browser) == []
    browser.switch_to.default_content()
    wait(browser, "document.querySelectorAll('a[download]').length > 5")
    assert serious_faults(browser) == []


# --- without a browser


def test_two_with_the_same_file_do_not_remove_it_from_one_another(tmp_path):
    sessions = app._Sessions(tmp_path)
    (tmp_path / "hash").mkdir()
    shared = write(tmp_path / "hash" / "a.wav")
    stopped, one = sessions.start("one", shared)
    _, two = sessions.start("two", shared)
    assert one.is_dir() and two.is_dir() and one != two
    sessions.close("one")
    assert stopped.is_set() and not one.exists() and two.is_dir() and shared.is_file()
    sessions.close("two")
    assert not two.exists() and not shared.exists()


def test_a_transcript_is_aligned_where_the_model_can(model, tmp_path):
    path = write(tmp_path / "a.wav", channels=2)
    told = []
    annotation = model.annotate_file(path)
    stub = SimpleNamespace(
        annotate_file=model.annotate_file,
        align_file=lambda *arguments, **_: told.append(arguments) or annotation,
    )
    assert app.word_sources(stub) == [app.OWN_WORDS, app.TYPED_WORDS]
    stub.whisper = object()
    assert app.word_sources(stub) == [app.WHISPER_WORDS, app.OWN_WORDS, app.TYPED_WORDS]
    [recording] = app._annotate(stub, path, "OH DEAR", False, lambda share: None)
    assert recording.annotation is annotation and told == [(path, "OH DEAR")]
    for text, each, problem in (
        ("OH", True, "one transcript for 2"),
        (" ", False, "no transcript"),
    ):
        with pytest.raises(InputError, match=problem):
            app._annotate(stub, path, text, each, lambda share: None)
    names = [r.annotation.name for r in app._annotate(stub, path, None, True, lambda share: None)]
    assert names == ["a.channel1", "a.channel2"]


def run(*arguments):
    """Exit status of ``ent-brain app``."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["app", *arguments])
    return ended.value.code


def test_a_port_is_checked_before_the_model_is_loaded(taken, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_load_model", lambda options: pytest.fail("loaded"))
    for arguments, problem in (
        (["--port", str(taken)], f"error: port {taken}: already in use. Give another --port.\n"),
        (["--port", "80000"], "cannot listen (bind(): port must be 0-65535.)"),
        (["--host", "192.0.2.1"], "error: 192.0.2.1:7860: cannot listen (Cannot assign"),
    ):
        assert run(*arguments) == 1
        said = capsys.readouterr()
        assert said.out == "" and problem in said.err
    with pytest.raises(InputError, match="already in use"):
        app.serve("no/model", port=taken)


def test_the_address_is_printed_when_the_server_answers(model, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, said, handler = f"http://127.0.0.1:{port}", [], signal.getsignal(signal.SIGTERM)

    def load(options):
        said.append(capsys.readouterr())
        return model

    def block(blocks):
        assert urlopen(address).status == 200
        said.append(capsys.readouterr())
        blocks.close()

    monkeypatch.setattr(cli, "_load_model", load)
    monkeypatch.setattr("gradio.Blocks.block_thread", block)
    try:
        assert run("--port", str(port)) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    loading, answering = said
    assert (loading.out, loading.err) == ("", "Loading the model ...\n")
    assert answering.out.startswith(f"{address} ")


def test_states_of_silence_are_computed_before_the_first_recording(model, monkeypatch):
    done = []
    whisper = SimpleNamespace(prepare=lambda: done.append("prepared"))
    monkeypatch.setattr(model, "whisper", whisper, raising=False)
    monkeypatch.setattr("gradio.Blocks.launch", lambda *_, **__: done.append("launched"))
    app.serve(model, port=0)
    assert done == ["prepared", "launched"]


def test_progress_is_told_in_shares_and_may_stop(model, tmp_path):
    path = write(tmp_path / "a.wav", seconds=40)
    shares = []
    model.annotate_file(path, progressbar=shares.append)
    assert len(shares) > 2 and shares == sorted(shares) and shares[-1] == 1.0

    def stop(share):
        raise app._StoppedError

    with pytest.raises(app._StoppedError):
        model.annotate_file(path, progressbar=stop)
