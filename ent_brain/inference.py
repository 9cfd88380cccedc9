"""A trained model in use: from a sound file to its words, its emotion and the emotions in time."""

import torch
from speechbrain.inference.interfaces import Pretrained

from ent_brain.dataio import read_audio
from ent_brain.decoding import beam_search
from ent_brain.emotions import EMOTIONS
from ent_brain.segments import segments_from_frames


class EmotionTransducer(Pretrained):
    """A trained emotion transducer; ``from_hparams(source=FOLDER)`` loads what training exported.

    Audio of any rate and number of channels is brought to what the model hears.

    Example
    -------
    >>> model = EmotionTransducer.from_hparams(source="pretrained")  # doctest: +SKIP
    >>> model.transcribe_file("speech.wav")  # doctest: +SKIP
    "WHERE'S YOUR TICKET"
    >>> model.classify_file("speech.wav")[1]  # doctest: +SKIP
    'angry'
    """

    HPARAMS_NEEDED = ["modules", "tokens", "max_symbols", "beam_size"]
    MODULES_NEEDED = ["frontend", "model"]

    def transcribe_file(self, path):
        """Words of a sound file (str), normalised as in training."""
        return self.hparams.tokens.decode(self.search_file(path).tokens)

    def classify_file(self, path):
        """Emotion of a sound file.

        Returns
        -------
        (Tensor, str)
            Probabilities [E] in the order of ``EMOTIONS``, and the name of the largest.
        """
        probabilities = self.search_file(path).utterance_log_probs.exp()
        return probabilities, EMOTIONS[int(probabilities.argmax())]

    def diarize_file(self, path):
        """Emotions of a sound file in time (list[Segment]): the most probable of each frame."""
        frames = self.search_file(path).emotion_log_probs.argmax(-1).tolist()
        return segments_from_frames(frames, self.mods.frontend.frame_duration)

    @torch.no_grad()
    def search_file(self, path):
        """Everything that the model makes of a sound file, a ``decoding.Hypothesis``."""
        frontend = self.mods.frontend
        wav = read_audio(path, frontend.sample_rate).to(self.device)
        features, frame_lens = frontend(wav[None], torch.ones(1, device=self.device))
        [[best]] = beam_search(
            self.mods.model,
            features,
            frame_lens,
            self.hparams.beam_size,
            max_symbols=self.hparams.max_symbols,
        )
        return best
