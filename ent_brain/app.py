"""Browser app: drop a recording or speak, then see and hear the words and emotions."""

import atexit
import errno
import os
import secrets
import shutil
import socket
import tempfile
import threading
from dataclasses import replace
from html import escape
from pathlib import Path

import gradio as gr

from ent_brain.audio import scan_audio
from ent_brain.errors import InputError
from ent_brain.formats import FORMATS
from ent_brain.inference import EmotionTransducer
from ent_brain.page import Utterance, write_recordings

MOST_MINUTES, MOST_MEGABYTES = 60, 500
"""Limits of a recording's duration in minutes and of its file's size in MB."""

KEPT_SECONDS = 3600
"""Age in seconds at which Gradio removes files of a page that is still open."""

WAITING = 32
"""Length of the queue. The model annotates one recording at a time."""

EMBEDDED_BYTES = 64 * 2**20
"""Size limit in bytes of the MP3 in a player's page. ``MOST_MINUTES`` of sound need less."""

WHISPER_WORDS, OWN_WORDS = "Whisper's", "the model's own"
TYPED_WORDS = "a transcript that I type"
MIXED, EACH = "mixed", "each alone"

FIT_PLAYER = """
const fit = () => {
  const frame = element.querySelector("iframe");
  const [text] = props.value || [""];
  frame.hidden = !text;
  frame.onload = () => {
    const page = frame.contentDocument;
    page.documentElement.style.overflowY = "hidden";
    const resize = () => { frame.style.height = `${page.body.offsetHeight + 2}px`; };
    new ResizeObserver(resize).observe(page.body);
    resize();
  };
  frame.srcdoc = text;
};
fit();
watch("value", fit);
"""
"""JavaScript that shows a page as the player, without a scroll bar of its own."""

CSS = """
.gradio-container { max-width: 84rem !important; }
.gradio-container .or { color: inherit; }
#player iframe { width: 100%; border: 0; display: block; }
#player iframe[hidden] { display: none; }
"""
PROGRESS = gr.Progress()


class _StoppedError(Exception):
    """The user has stopped the annotation or closed the page."""


class _Sessions:
    """Files and running annotations of each open page, by Gradio's session hash."""

    def __init__(self, folder):
        self.folder = folder
        self._folders, self._uploads, self._running = {}, {}, {}

    def start(self, session, upload):
        """Stop a session's annotation; return the event that stops the next, and a new folder."""
        self.stop(session)
        self._running[session] = stopped = threading.Event()
        self._remove(session)
        self._uploads.setdefault(session, set()).add(Path(upload))
        self._folders[session] = folder = self.folder / secrets.token_urlsafe(24)
        folder.mkdir(mode=0o700)
        return stopped, folder

    def stop(self, session):
        if session in self._running:
            self._running.pop(session).set()

    def close(self, session):
        """Stop a session's annotation and remove its files."""
        self.stop(session)
        self._remove(session)
        uploads = self._uploads.pop(session, set())
        others = set().union(*self._uploads.values())  # two sessions may share an identical file
        for upload in uploads - others:
            if upload.is_relative_to(self.folder):
                shutil.rmtree(upload.parent, ignore_errors=True)

    def _remove(self, session):
        if session in self._folders:
            shutil.rmtree(self._folders.pop(session), ignore_errors=True)


def word_sources(model):
    """Return the sources of words that a model supports (list[str]), the default first.

    Example
    -------
    >>> word_sources(object())
    ["the model's own"]
    """
    whisper = [WHISPER_WORDS] * (getattr(model, "whisper", None) is not None)
    return [*whisper, OWN_WORDS] + [TYPED_WORDS] * hasattr(model, "align_file")


def make_app(model, title="Words and emotions", minutes=MOST_MINUTES):
    """Build the app.

    Arguments
    ---------
    model : EmotionTransducer
    title : str
    minutes : float
        Limit of a recording's duration.

    Returns
    -------
    gradio.Blocks
        The app. ``serve`` launches it with this package's limits.
    """
    scratch = tempfile.TemporaryDirectory(prefix="ent_brain_app")
    atexit.register(scratch.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = scratch.name  # Gradio reads it when components are made
    sessions = _Sessions(Path(scratch.name))
    sources = word_sources(model)

    def annotate(
        file, spoken, source, transcript, channels, request: gr.Request, progress=PROGRESS
    ):
        path = file or spoken
        if not path:
            raise _problem("No recording. Drop a file or record something first.")
        stopped, folder = sessions.start(request.session_hash, path)

        def show_share(share):
            if stopped.is_set():
                raise _StoppedError
            progress(share, desc="annotating")

        name = Path(path).stem
        try:
            show_share(0.0)
            typed = transcript if source == TYPED_WORDS else None
            check_length(path, minutes)
            chosen = model.with_own_words() if source == OWN_WORDS else model
            recordings = _annotate(chosen, path, typed, channels == EACH, show_share)
            page = folder / f"{name}.html"
            write_recordings(page, name, recordings, EMBEDDED_BYTES)
            show_share(1.0)
            paths = [page]
            for recording in recordings:
                paths += recording.annotation.write(folder, FORMATS)
        except InputError as error:
            raise _problem(str(error).replace(str(path), Path(path).name)) from None
        except _StoppedError:
            return None, gr.Files(visible=False)
        # In a list, because Gradio warns about scripts in a plain string.
        text = page.read_text(encoding="utf-8")
        return [text], gr.Files(list(map(str, paths)), visible=True)

    def stop(request: gr.Request):
        sessions.stop(request.session_hash)

    def close(request: gr.Request):
        sessions.close(request.session_hash)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as app:
        gr.HTML(f"<h1>{escape(title)}</h1>")
        with gr.Row():
            file = gr.File(label="Drop a sound or video file", height=140)
            # Gradio's own function leaves an empty temporary file for each recording.
            file.preprocess = lambda upload: upload and upload.path
            spoken = gr.Audio(label="or speak", sources=["microphone"], type="filepath", buttons=[])
            with gr.Column(min_width=200):
                channels = gr.Radio([MIXED, EACH], value=MIXED, label="Channels")
                several = len(sources) > 1
                source = gr.Radio(sources, value=sources[0], label="Words", visible=several)
                transcript = gr.Textbox(label="Transcript", lines=3, visible=False)
        with gr.Row():
            again = gr.Button("Annotate", variant="primary")
            cancel = gr.Button("Cancel", interactive=False)
        player = gr.HTML(
            html_template='<iframe title="Player" hidden></iframe>',
            js_on_load=FIT_PLAYER,
            elem_id="player",
            min_height=120,
        )
        files = gr.Files(label="Download", interactive=False, visible=False)

        inputs = [file, spoken, source, transcript, channels]
        at_once = {"queue": False, "show_progress": "hidden"}
        for event, other in (
            (file.upload, spoken),
            (spoken.stop_recording, file),
            (again.click, None),
        ):
            first = event(lambda: gr.Button(interactive=True), outputs=cancel, **at_once)
            if other is not None:  # the newest input replaces the other one
                first = first.then(lambda: None, outputs=other, **at_once)
            first.then(
                annotate, inputs, [player, files], concurrency_id="model", show_progress_on=player
            ).then(lambda: gr.Button(interactive=False), outputs=cancel, **at_once)
        cancel.click(stop, **at_once)
        source.change(
            lambda chosen: gr.Textbox(visible=chosen == TYPED_WORDS), source, transcript, **at_once
        )
        app.unload(close)
    return app.queue(max_size=WAITING)


def serve(
    model, host="127.0.0.1", port=7860, minutes=MOST_MINUTES, megabytes=MOST_MEGABYTES, **settings
):
    """Show a model in the browser until the process ends.

    Arguments
    ---------
    model : EmotionTransducer, str or Path
        The model, or a source for ``EmotionTransducer.from_hparams``.
    host : str
        Address to listen on. By default other computers cannot reach the app.
    port : int
    minutes, megabytes : float
        Limits of a recording.
    **settings
        Arguments of Gradio's ``launch``.

    Raises
    ------
    InputError
        If the port is taken, or the model cannot be loaded.
    """
    check_port(host, port)
    if not isinstance(model, EmotionTransducer):
        model = EmotionTransducer.from_hparams(source=model)
    if model.whisper is not None:
        model.whisper.prepare()
    app = make_app(model, minutes=minutes)
    # System fonts, so that nothing is downloaded; dark buttons, so that white text is readable.
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]
    ).set(
        link_text_color_dark="*primary_200",
        link_text_color_hover_dark="*primary_100",
        link_text_color_visited_dark="*primary_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    try:
        return app.launch(
            server_name=host,
            server_port=port,
            max_file_size=int(megabytes * 1e6),
            share=False,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            theme=theme,
            css=CSS,
            **settings,
        )
    except OSError as error:
        raise _taken(port) from error


def check_port(host, port):
    """Refuse a port that the app cannot listen on (``InputError``)."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise _taken(port) from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host}:{port}: cannot listen ({reason}). Give another --host or --port."
        ) from error


def _taken(port):
    return InputError(f"port {port}: already in use. Give another --port.")


def check_length(path, minutes):
    """Refuse a recording that is too long (``InputError``)."""
    seconds = scan_audio(path).seconds
    if seconds > 60 * minutes:
        raise InputError(
            f"{path}: lasts {seconds / 60:.1f} minutes. Cut it to {minutes:g} minutes."
        )


def _annotate(model, path, transcript, each_channel, show_share):
    """Annotate a file, or each of its channels (list[Utterance])."""
    audio = scan_audio(path)
    numbers = range(1, audio.channels + 1) if each_channel and audio.channels > 1 else [None]
    if transcript is not None and len(numbers) > 1:
        raise InputError(f"{path}: one transcript for {len(numbers)} channels. Mix the channels.")
    if transcript is not None and not transcript.strip():
        raise InputError(f"{path}: no transcript. Type what is said.")
    recordings = []
    for done, number in enumerate(numbers):

        def show_part(share, done=done):
            show_share((done + share) / len(numbers))

        arguments = {"progressbar": show_part, "channel": number}
        if transcript is None:
            annotation = model.annotate_file(path, **arguments)
        else:
            annotation = model.align_file(path, transcript, **arguments)
        if number is not None:
            annotation = replace(annotation, name=f"{annotation.name}.channel{number}")
        recordings.append(Utterance(annotation, str(path), channel=number))
    return recordings


def _problem(text):
    """An error that the app shows as plain text."""
    return gr.Error(escape(text), duration=None, print_exception=False)
