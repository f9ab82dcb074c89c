"""Generated worlds: the project's embedded data.

Scenes of coloured shapes with exact boxes, captions, gold links, false captions and questions.

    source = WorldSource(split="train", count=8000, seed=0)
    source[0].texts, source.image(0), source.words_to_test(0)

Unusual: the truth of every caption about every scene can be computed, so negatives are known to be false, and eight
colour-shape pairs are held out.
"""

from intarsia.worlds.candidates import candidate_sets
from intarsia.worlds.captions import Caption, Phrase, Word, Written, determined, holds, parse, write
from intarsia.worlds.folder import write_folder
from intarsia.worlds.questions import ask, choose, compare, refer
from intarsia.worlds.scene import HELD_OUT, Scene, SceneObject, scene_graph
from intarsia.worlds.source import CLASSES, Split, WorldConfig, WorldSource

__all__ = [
    "CLASSES",
    "HELD_OUT",
    "Caption",
    "Phrase",
    "Scene",
    "SceneObject",
    "Split",
    "Word",
    "WorldConfig",
    "WorldSource",
    "Written",
    "ask",
    "candidate_sets",
    "choose",
    "compare",
    "determined",
    "holds",
    "parse",
    "refer",
    "scene_graph",
    "write",
    "write_folder",
]
