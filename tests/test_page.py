import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ent_brain import page
from ent_brain.annotation import Annotation, Speaker, Word
from ent_brain.emotions import PUBLISHED
from ent_brain.errors import InputError
from ent_brain.page import (
    Utterance,
    read_utterances,
    write_page,
    write_recordings,
    write_report,
    write_utterances,
)
from ent_brain.segments import Segment

HOSTILE = "</script><img src=x onerror=alert(1)>&lt;\u2028{{data}}'\""
RESULTS = [
    {"test set": "ZED", "protocol": "valid", "WER": 10.0, "EDER": 12.345},
    {"test set": "ZED", "protocol": HOSTILE, "WER": None, "EDER": 39.0},
]


def write_tone(path, seconds=0.8):
    time = np.arange(int(16000 * seconds)) / 16000
    soundfile.write(
        path, 0.5 * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time / seconds), 16000
    )
    return str(path)


def make_utterance(name, audio, number=0, test_set="ZED", text="OH DEAR ME"):
    """Three words of 0.2 s, the middle one in an emotion that depends on the number."""
    emotion = PUBLISHED.names[number % 4]
    frames = [[0.0, 0.0, 0.0, 1.0]] * 8
    frames[3:5] = [[0.7 * (emotion == other) + 0.075 for other in PUBLISHED.names]] * 2
    segments = (
        Segment(0.0, 0.3, "neutral"),
        Segment(0.3, 0.5, emotion),
        Segment(0.5, 0.8, "neutral"),
    )
    words = [(word, 0.1 + 0.2 * i, 0.3 + 0.2 * i) for i, word in enumerate(("OH", "MY", "DEAR"))]
    annotation = Annotation(
        name=name,
        duration=0.8,
        text="OH MY DEAR",
        emotions=PUBLISHED.names,
        neutral="neutral",
        emotion=emotion,
        probabilities=tuple(0.7 * (emotion == other) + 0.075 for other in PUBLISHED.names),
        words=tuple(Word(*w, emotion if w[0] == "MY" else "neutral", 0.9) for w in words),
        segments=segments,
        frame_duration=0.1,
        frame_probabilities=tuple(map(tuple, frames)),
    )
    reference = Annotation(
        name, 0.8, text, PUBLISHED.names, "neutral", "sad", (), (), segments, 0.1, ()
    )
    rates = {"WER": float(37 * number % 101), "EDER": float(61 * number % 89)}
    return Utterance(annotation, audio, reference, test_set, rates)


class Document(HTMLParser):
    """A parsed page: tags with their attributes, and the text of each script."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.title = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.lasttag = ""

    def handle_data(self, text):
        if self.lasttag == "script":
            self.scripts[-1] += text
        elif self.lasttag == "title":
            self.title += text

    @property
    def data(self):
        return json.loads(self.scripts[0])


# --- the file


def test_utterances_are_read_as_they_were_written(tmp_path):
    utterances = [make_utterance(HOSTILE, "a b.wav", 1), make_utterance("two", "2.wav", 2, "é")]
    utterances.append(Utterance(utterances[0].annotation, "alone.wav"))
    write_utterances(utterances, tmp_path / "utterances.jsonl")
    assert list(read_utterances(tmp_path / "utterances.jsonl")) == utterances
    assert len((tmp_path / "utterances.jsonl").read_bytes().splitlines()) == 3


def test_utterances_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "utterances.jsonl"
    write_utterances((make_utterance(name, "a.wav") for name in "ab"), path)
    path.write_bytes(path.read_bytes()[:-9])
    read = read_utterances(path)
    assert next(read).annotation.name == "a"
    with pytest.raises(InputError, match=r"utterances\.jsonl line 2: damaged"):
        next(read)


def test_no_text_becomes_markup(tmp_path):
    audio = write_tone(tmp_path / "tone.wav")
    write_page(
        tmp_path / "page.html", HOSTILE, RESULTS, [make_utterance(HOSTILE, audio, text=HOSTILE)]
    )
    document = Document(tmp_path / "page.html")
    tags = [tag for tag, _ in document.tags]
    assert (tags.count("script"), tags.count("img")) == (3, 0)
    assert document.title.startswith(HOSTILE)
    [utterance] = document.data["utterances"]
    assert utterance["id"] == utterance["reference"] == HOSTILE
    assert document.data["results"]["rows"][1] == ["ZED", HOSTILE, "-", "39.0"]


def test_the_page_fetches_nothing_and_runs_its_own_scripts_alone(tmp_path):
    write_page(tmp_path / "page.html", "results", RESULTS, [])
    document = Document(tmp_path / "page.html")
    assert not [attributes for _, attributes in document.tags if {"src", "href"} & set(attributes)]
    [policy] = [a["content"] for _, a in document.tags if "http-equiv" in a]
    allowed = dict(part.split(maxsplit=1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    for script in document.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed["script-src"]
    assert "BSD 3-Clause" in (tmp_path / "page.html").read_text("utf-8")


def test_sound_is_embedded_linked_or_missed(tmp_path, caplog):
    (tmp_path / "a corpus").mkdir()
    audio = write_tone(tmp_path / "a corpus" / "a tone#1.wav")
    (tmp_path / "broken.wav").write_text("no sound")
    utterances = [
        make_utterance("b", audio, test_set="large"),
        make_utterance("a", audio, test_set="large"),
        make_utterance("c", audio, test_set="small"),
        make_utterance("d", str(tmp_path / "broken.wav"), test_set="large"),
    ]
    one = io.BytesIO()
    original = soundfile.read(audio)[0]
    soundfile.write(one, original, 16000, format="MP3")
    path = tmp_path / "pages" / "page.html"
    write_page(path, "sounds", [], utterances, embedded_bytes=int(2.5 * len(one.getvalue())))
    described = {u["id"]: u for u in Document(path).data["utterances"]}
    # The small set is embedded whole, and of the large one what has room.
    for name in "ca":
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(described[name]["audio"])))
        assert (rate, len(samples)) == (16000, len(original))
        assert np.corrcoef(samples, original)[0, 1] > 0.99  # not even a sample late
    assert described["b"]["audio"] is None
    link = Path(unquote(described["b"]["link"]))
    assert not link.is_absolute() and (path.parent / link).samefile(audio)
    assert described["d"]["audio"] is described["d"]["link"] is described["d"]["peaks"] is None
    assert f"without the sound of 1 utterances. {tmp_path}/broken.wav" in caplog.text
    text = path.read_text("utf-8")
    assert "The sound of 2 utterances is in this file. The sound of 1 utterance is linked" in text
    assert "The sound of 1 utterance is missing" in text


def test_of_a_long_recording_frames_are_averaged():
    frames = np.random.default_rng(0).dirichlet([1] * 4, size=2501)
    probabilities, together = page._overview(tuple(map(tuple, frames)))
    assert (together, len(probabilities)) == (3, 834)
    assert np.allclose(probabilities[:-1], [frames[i : i + 3].mean(0) for i in range(0, 2499, 3)])
    assert np.allclose(probabilities[-1], frames[2499:].mean(0))
    assert np.array_equal(page._overview(frames[:7])[0], frames[:7])


def test_a_long_sound_is_outlined_block_by_block(tmp_path):
    """Compared with an outline of the whole signal; 70 s are more than two blocks."""
    wav = np.random.default_rng(0).uniform(-1, 1, (70 * 16000 + 123, 2)) * 0.5
    wav[:, 1] *= np.linspace(0.1, 1, len(wav))
    soundfile.write(tmp_path / "a.flac", wav, 16000)
    one = make_utterance("a", str(tmp_path / "a.flac"))
    second = Utterance(one.annotation, one.audio, channel=2)
    sound = page._sound(second, tmp_path, 2**30)
    samples, _ = soundfile.read(io.BytesIO(sound["audio"]))
    assert np.corrcoef(samples, wav[:, 1])[0, 1] > 0.8 and len(samples) == len(wav)
    edges = [int(i * len(wav) / 1000) for i in range(1001)]
    outline = [np.abs(wav[a:b, 1]).max() for a, b in zip(edges, edges[1:], strict=False)]
    peaks = np.frombuffer(sound["peaks"], dtype=np.uint8)
    assert np.allclose(peaks, 255 * np.array(outline) / max(outline), atol=1)
    assert page._sound(second, tmp_path, 1000)["link"] == "a.flac"


def recording(name, runs, speaker=None, frame=0.1):
    """A recording whose frames have one emotion each: (emotion, probability, frames)."""
    frames, segments, start = [], [], 0.0
    for emotion, probability, count in runs:
        rest = (1 - probability) / 3
        frames += [[probability if e == emotion else rest for e in PUBLISHED.names]] * count
        segments.append(Segment(start, start + count * frame, emotion))
        start += count * frame
    words = (Word("FIRST", 0.0, 0.5, "neutral", 0.9), Word("LAST", start - 0.5, start, "sad", 0.9))
    told = "sad", (0.1, 0.1, 0.7, 0.1)
    seconds = [sum(n * frame for e, _, n in runs if e == emotion) for emotion in PUBLISHED.names]
    speakers = () if speaker is None else (Speaker(speaker, tuple(seconds)),)
    annotation = Annotation(
        name, start, "FIRST LAST", PUBLISHED.names, "neutral", *told, words, tuple(segments), frame,
        tuple(map(tuple, frames)), speakers=speakers,
    )  # fmt: skip
    return Utterance(annotation, "gone.wav")


def test_a_summary_has_the_seconds_of_emotions_and_the_strongest_moments(tmp_path):
    recordings = [
        recording("a", [("neutral", 1.0, 20), ("angry", 0.8, 15), ("neutral", 1.0, 5)], "Ann"),
        recording("a2", [("sad", 0.9, 20)], "Bob"),
        recording("b", [("happy", 1.0, 3), ("neutral", 0.9, 7)], "Ann"),  # short: 0.3 of a second
    ]
    write_recordings(tmp_path / "page.html", "calls", iter(recordings))
    summary = Document(tmp_path / "page.html").data["summary"]
    one, two = summary["seconds"]
    seconds = dict(zip(PUBLISHED.names, one[1], strict=True))
    assert one[0] == "Ann"
    expected = {"happy": 0.3, "angry": 1.5, "sad": 0.0, "neutral": 3.2}
    assert seconds == {emotion: pytest.approx(value) for emotion, value in expected.items()}
    assert two[0] == "Bob" and sum(two[1]) == pytest.approx(2.0)
    told = [(each["id"], each["probability"], each["text"]) for each in summary["moments"]]
    assert told == [
        ("a2", pytest.approx(0.9), "FIRST"),
        ("a", pytest.approx(0.8), ""),
        ("b", pytest.approx(1.0), "FIRST"),  # last, because it is short
    ]
    assert summary["moments"][1]["start"] == pytest.approx(2.0)
    many = [recording(f"{i}", [("sad", 0.5 + i / 100, 10)]) for i in range(20)]
    write_recordings(tmp_path / "page.html", "calls", many)
    summary = Document(tmp_path / "page.html").data["summary"]
    assert [each["id"] for each in summary["moments"]] == [str(19 - i) for i in range(10)]
    assert [name for name, _ in summary["seconds"]] == ["all"]


words = st.lists(st.sampled_from(["A", "B", "C"]), max_size=6)


@given(words.filter(bool), words)
def test_the_comparison_has_as_many_errors_as_jiwer_counts(target, predicted):
    pairs = page._pairs(target, predicted)
    assert [word for word, _ in pairs if word is not None] == target
    assert [index for _, index in pairs if index is not None] == list(range(len(predicted)))
    wrong = [(w, i) for w, i in pairs if None in (w, i) or w != predicted[i]]
    counted = jiwer.process_words(" ".join(target), " ".join(predicted))
    assert len(wrong) == counted.substitutions + counted.insertions + counted.deletions


def test_a_page_of_a_folder_needs_what_an_evaluation_leaves(tmp_path):
    with pytest.raises(InputError, match=r"results\.json: no such file\. Name the output folder"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    write_utterances([make_utterance("one", "gone.wav")], tmp_path / "utterances.jsonl")
    assert write_report(tmp_path, progressbar=False) == tmp_path / "report.html"
    assert Document(tmp_path / "report.html").data["utterances"][0]["id"] == "one"


# --- in a browser

CHROMIUM_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--autoplay-policy=no-user-gesture-required", "--mute-audio", "--window-size=1280,900"),
)
MANY = 1000


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests, without a window."""
    driver = start_chromium()
    yield driver
    driver.quit()


def start_chromium(*flags):
    """Start a Chromium without a window, or skip the test."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no Chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in CHROMIUM_FLAGS + flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    return webdriver.Chrome(options=options, service=service)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of 1,000 utterances in two sets, one of them hostile."""
    folder = tmp_path_factory.mktemp("many")
    audio = write_tone(folder / "tone.wav")
    utterances = [
        make_utterance(f"u_{number}", audio, number, "one" if number % 3 else "two")
        for number in range(MANY - 1)
    ]
    utterances.append(make_utterance(HOSTILE, audio, MANY - 1, HOSTILE, text=HOSTILE))
    write_page(folder / "page.html", HOSTILE, RESULTS, utterances)
    return folder / "page.html", {u.annotation.name: u for u in utterances}


@pytest.fixture
def shown(browser, many):
    """The page of many utterances, right after opening."""
    return open_page(browser, many[0])


def open_page(browser, path):
    browser.get("about:blank")
    browser.get(path.as_uri())
    return browser


def wait(browser, script, seconds=20):
    """Wait until a script returns a true value, and return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.02).until(
        lambda b: b.execute_script(f"return {script}")
    )


def press(browser, *keys):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser).send_keys(getattr(Keys, key)).perform()


def ids(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#rows tbody a')].map(a => a.textContent)"
    )


def chosen(browser):
    return browser.execute_script("return document.getElementById('utterance-title').textContent")


def now(browser):
    return browser.execute_script("return document.getElementById('audio').currentTime")


def find(browser, selector):
    return browser.find_element("css selector", selector)


def test_it_loads_without_complaint_and_shows_texts_as_texts(shown, many):
    assert find(shown, "h1").get_property("textContent") == HOSTILE
    assert len(ids(shown)) == MANY
    find(shown, "#find").send_keys("onerror")
    assert ids(shown) == [HOSTILE]
    find(shown, "#rows tbody a").click()
    assert chosen(shown) == HOSTILE
    assert HOSTILE.split()[0] in find(shown, "#words").text
    assert not shown.find_elements("css selector", "img")
    assert shown.get_log("browser") == []


def test_it_plays_and_words_light_up(shown):
    shown.execute_script(
        """window.lit = new Set();
        (function look() {
          const words = document.querySelectorAll(".word[aria-current]");
          words.forEach((word) => lit.add(word.firstChild.textContent));
          requestAnimationFrame(look);
        })();
        document.getElementById("audio").playbackRate = 0.5;"""
    )
    find(shown, "#play").click()
    wait(shown, "document.getElementById('play').ariaLabel === 'Pause'")
    wait(shown, "document.getElementById('audio').ended")
    assert shown.execute_script("return [...lit]") == ["OH", "MY", "DEAR"]
    assert find(shown, "#play").accessible_name == "Play"


def test_a_click_or_a_key_goes_to_a_word(shown):
    from selenium.webdriver import ActionChains

    assert "0.30 to 0.50 neutral" in find(shown, "#intervals").get_property("textContent")
    find(shown, ".pair:nth-child(2) .word").click()
    assert now(shown) == pytest.approx(0.3, abs=0.01)
    shown.execute_script("document.querySelectorAll('.word')[2].focus()")
    press(shown, "ENTER")
    assert now(shown) == pytest.approx(0.5, abs=0.01)
    stage = find(shown, "#stage")
    quarter = stage.size["width"] // 4  # from the middle
    ActionChains(shown).move_to_element_with_offset(stage, quarter, 0).click().perform()
    assert now(shown) == pytest.approx(0.6, abs=0.01)
    find(shown, ".pair:nth-child(2) .word").click()
    find(shown, "#play").click()
    wait(shown, "document.getElementById('audio').currentTime > 0.35")


def test_a_thousand_utterances_are_sorted_and_filtered(shown, many):
    utterances = many[1]
    for key, metric in (("wer", "WER"), ("eder", "EDER")):
        for sign, direction in ((-1, "descending"), (1, "ascending")):
            find(shown, f"th[data-key={key}] button").click()
            found = [utterances[name].rates[metric] * sign for name in ids(shown)]
            assert found == sorted(found) and len(found) == MANY
            assert find(shown, f"th[data-key={key}]").get_attribute("aria-sort") == direction
    find(shown, "th[data-key=id] button").click()
    assert ids(shown)[-MANY + 1 :][:3] == ["u_0", "u_1", "u_2"]  # numbers in their order
    find(shown, "#by-emotion option[value=wrong]").click()
    wrong = {name for name, u in utterances.items() if u.annotation.emotion != "sad"}
    assert set(ids(shown)) == wrong
    find(shown, "#find").send_keys("u_99")
    assert set(ids(shown)) == {name for name in wrong if "u_99" in name}


def test_the_keyboard_is_enough(shown):
    wait(shown, "document.querySelector('#rows [aria-current]')")
    second = ids(shown)[1]
    press(shown, "ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    assert chosen(shown) == second
    press(shown, "ARROW_RIGHT")
    assert now(shown) == pytest.approx(0.5, abs=0.01)
    press(shown, "ARROW_LEFT")
    assert now(shown) == 0
    shown.execute_script("document.getElementById('audio').playbackRate = 0.0625")
    press(shown, "SPACE")
    wait(shown, "document.getElementById('audio').currentTime > 0.01")
    press(shown, "SPACE")
    assert shown.execute_script("return document.getElementById('audio').paused")
    # Every control can be reached, and says what it is.
    reached = set()
    for _ in range(30):
        press(shown, "TAB")
        active = "document.activeElement"
        reached.add(shown.execute_script(f"return {active}.id || {active}.closest('[id]')?.id"))
        assert shown.switch_to.active_element.accessible_name
    assert {"play", "speed", "stage", "words", "find", "by-emotion", "by-set", "rows"} <= reached


def test_an_address_names_the_utterance(browser, many):
    address = f"{many[0].as_uri()}#one/u_7"
    browser.get("about:blank")
    browser.get(address)
    wait(browser, "document.querySelector('#rows [aria-current]')")
    assert chosen(browser) == "u_7"
    assert (
        browser.execute_script(
            "return document.querySelector('#rows [aria-current] a').textContent"
        )
        == "u_7"
    )


def test_a_phone_scrolls_only_downwards(browser, many):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        open_page(browser, many[0])
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        assert browser.execute_script("return innerWidth") == 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_linked_sound_plays_and_missing_sound_is_said(browser, tmp_path):
    audio = write_tone(tmp_path / "a tone.wav")
    bare = make_utterance("b", str(tmp_path / "gone.wav"))
    utterances = [make_utterance("a", audio), Utterance(bare.annotation, bare.audio)]
    (tmp_path / "page").mkdir()
    write_page(tmp_path / "page" / "page.html", "linked", [], utterances, embedded_bytes=0)
    open_page(browser, tmp_path / "page" / "page.html")
    press(browser, "SPACE")
    wait(browser, "document.getElementById('audio').currentTime > 0.05")
    press(browser, "ARROW_DOWN")
    assert chosen(browser) == "b"
    assert "could not be read" in find(browser, "#no-audio").text
    assert not find(browser, "#play").is_displayed()
    assert (
        find(browser, "#words").text.split() == ["OH", "MY", "s", "DEAR"]
        or "MY" in find(browser, "#words").text
    )
    assert browser.get_log("browser") == []


def test_a_click_on_a_moment_plays_it(browser, tmp_path):
    audio = write_tone(tmp_path / "tone.wav")
    one, two = (make_utterance(HOSTILE + name, audio, number) for number, name in enumerate("ab"))
    recordings = [Utterance(each.annotation, each.audio) for each in (one, two)]
    write_recordings(tmp_path / "page.html", "calls", recordings)
    open_page(browser, tmp_path / "page.html")
    moments = browser.find_elements("css selector", "#moments button")
    percentages = [re.search(r"\d+ %", moment.text)[0] for moment in moments]
    assert percentages == ["77 %", "77 %"]  # the frames' own, though they last 0.2 s only
    assert len(moments) == 2 and not browser.find_elements("css selector", "#moments img")
    place = find(browser, "#moments li:nth-child(2) .place").get_property("textContent")
    moments[1].click()
    wait(browser, "document.getElementById('audio').currentTime > 0.31")
    assert place == f"{chosen(browser)} at 0.3 s" and chosen(browser) in (
        HOSTILE + "a",
        HOSTILE + "b",
    )
    find(browser, "#word-details summary").click()
    wait(browser, "document.querySelectorAll('#word-details tbody tr').length === 3")
    assert find(browser, "#word-details tbody tr").text == "OH 0.10 0.30 neutral 0.90"
    assert browser.get_log("browser") == []


def test_the_only_recording_has_one_heading_and_no_key_for_others(browser, tmp_path):
    one, two = (make_utterance(name, "gone.wav") for name in ("talk", "other"))
    for title, recordings, expected in (
        ("talk", [one], (False, False)),
        ("calls", [one], (True, False)),
        ("talk", [one, two], (True, True)),
    ):
        recordings = [Utterance(each.annotation, each.audio) for each in recordings]
        write_recordings(tmp_path / "page.html", title, recordings)
        open_page(browser, tmp_path / "page.html")
        shown = [find(browser, each).is_displayed() for each in ("#utterance-title", "#choose-key")]
        assert tuple(shown) == expected
        assert find(browser, "#keys").text.count("choose") == expected[1]


def set_colors(browser, dark):
    """Let pages be dark or light."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def serious_faults(browser):
    """Rules of axe-core that the page seriously violates, each with the first element."""
    pytest.importorskip("axe_core_python")
    from axe_core_python.base import AXE_SCRIPT

    browser.execute_script(AXE_SCRIPT)
    script = "axe.run({iframes: false}).then(arguments[0])"
    violations = browser.execute_async_script(script)["violations"]
    return [
        (each["id"], each["nodes"][0]["html"][:200])
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(browser, tmp_path, dark):
    audio = write_tone(tmp_path / "tone.wav")
    utterances = [make_utterance(f"u{number}", audio, number) for number in range(4)]
    write_page(tmp_path / "report.html", "report", RESULTS, utterances)
    recordings = [Utterance(each.annotation, each.audio) for each in utterances]
    write_recordings(tmp_path / "recordings.html", "calls", recordings)
    write_recordings(tmp_path / "one.html", "call", recordings[:1])
    set_colors(browser, dark)
    try:
        for name in ("report", "recordings", "one"):
            open_page(browser, tmp_path / f"{name}.html")
            for summary in browser.find_elements("css selector", "summary"):
                if summary.is_displayed():
                    summary.click()
            wait(browser, "document.querySelectorAll('.word').length >= 3")
            find(browser, ".word").click()
            assert serious_faults(browser) == [], name
    finally:
        set_colors(browser, False)
