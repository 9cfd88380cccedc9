"""The losses of an emotion transducer, from the modules that define them."""

from ent_brain.events import aligned_event_loss, aligned_events
from ent_brain.pooling import (
    POOLING_MODES,
    SUPERVISED_MODES,
    aligned_emotions,
    aligned_pooling_loss,
    lattice_pooling_loss,
    supervised_aligned_loss,
    supervised_lattice_loss,
)
from ent_brain.transducer import (
    Alignment,
    arc_log_probs,
    ctc_loss,
    next_token_loss,
    transducer_alignment,
    transducer_loss,
)

__all__ = [
    "POOLING_MODES",
    "SUPERVISED_MODES",
    "Alignment",
    "aligned_emotions",
    "aligned_event_loss",
    "aligned_events",
    "aligned_pooling_loss",
    "arc_log_probs",
    "ctc_loss",
    "lattice_pooling_loss",
    "next_token_loss",
    "supervised_aligned_loss",
    "supervised_lattice_loss",
    "transducer_alignment",
    "transducer_loss",
]
