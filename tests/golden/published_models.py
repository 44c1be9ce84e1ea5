"""What is said of a published checkpoint beside its sizes, and the sources that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Published:
    """A checkpoint of a model hub: its files as far as they say what the model is.

    `config` and `preprocessor` are spelled as on the hub, with the values that the hub's files leave out left out.
    """

    hub: str
    family: str
    """The tiny checkpoint of the same kind, whose tokenizer and chat template stand in for the published ones."""
    dtype: str
    config: dict
    read: dict[str, str]
    """Where sizes, names and the number of parameters were read."""
    preprocessor: dict | None = None
    video_preprocessor: dict | None = None
    """video_preprocessor_config.json, of those that have one."""
    shards: int = 1
    dtypes: dict[str, str] = field(default_factory=dict)
    """Element types of tensors that are stored otherwise, by endings of their names."""
    file_bytes: int | None = None
    """Length of the one file as the hub lists it, read in public repositories. Every name, shape and type counts in it."""
    bare: bool = False
    """The headers of their files say nothing but the tensors."""
    own_head: bool = False
    """Their output layer is one of its own although today's class ties it where, as here, the top of the file does not say so."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Beginnings of names in transformers and what the published files have instead; the first that fits counts."""
    patterns: tuple[tuple[str, str], ...] = ()
    """Patterns of names in transformers and what the published files have instead, one after the other."""
    folders: dict[str, list[str]] = field(default_factory=dict)
    """Folders of a pipeline and the beginnings of names that lie in them; the rest lies in transformer/."""
    duplicates: dict[str, str] = field(default_factory=dict)
    """Tensors that the files hold although they are tied: name, and the tensor that they equal."""
    buffers: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    """What older releases wrote beside the parameters: pattern, element type and shape."""
    packed: Callable[[int, int], dict[str, tuple[str, list[int]]]] | None = None
    """What stands for a matrix [rows, columns] of the decoder's layers: element types and shapes by endings of names."""
