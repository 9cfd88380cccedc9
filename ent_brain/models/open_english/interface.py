# For SpeechBrain's foreign_class(source=..., pymodule_file="interface.py",
# classname="EmotionTransducer"), which runs this file; from_hparams of the class itself does not.
from ent_brain.inference import EmotionTransducer  # noqa: F401
