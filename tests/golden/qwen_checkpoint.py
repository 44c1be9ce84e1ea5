"""What the tiny Qwen-VL checkpoints share: tokenizer, chat template, random weights, the files of a hub directory."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from checkpoint_files import weight_files
from golden_io import HERE, write_json, write_tensors
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

FAMILIES = HERE / "families"
# after the BPE vocabulary, as in the published tokenizers; the last two are not special there either
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NOT_SPECIAL = ["<tool_call>", "</tool_call>"]
MERGES = 26
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "system\nYou are a helpful assistant.",
    "user\nYou are a mobile robot. What is in view?",
    "assistant\nCompare the two images: which one shows the red box, and which the blue ball?",
]


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint: its directory's name and what the files of its hub directory hold."""

    name: str
    seed: int
    config: dict  # ids of special tokens as the tokens' text, see `resolve_ids`
    generation: dict
    preprocessor: dict
    template: str
    renamed: dict[str, str]  # prefix of a weight's name in the model: the prefix in published files
    not_special: tuple[str, ...] = ()  # added tokens beside NOT_SPECIAL
    video: dict | None = None  # video_preprocessor_config.json, where that family's hub directories have one
    placed: Callable[[str], tuple[str, str]] | None = (
        None  # a weight's file and name, where there is a folder for each part
    )
    beside: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # shapes of what the files hold beside, by published names

    @property
    def directory(self) -> Path:
        return FAMILIES / self.name


def make_tokenizer(not_special: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE built as the published ones: NFC, the split by `WORDS`, markup as added tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in [*NOT_SPECIAL, *not_special]])
    return tokenizer


def resolve_ids(value, tokenizer: Tokenizer):
    """`value` with the text of every special token replaced by its id."""
    if isinstance(value, dict):
        return {key: resolve_ids(item, tokenizer) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_ids(item, tokenizer) for item in value]
    return tokenizer.token_to_id(value) if value in SPECIAL else value


def tokenizer_config(tokenizer: Tokenizer, template: str) -> dict:
    added = {
        str(i): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for i, token in tokenizer.get_added_tokens_decoder().items()
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def randomise(model: torch.nn.Module, seed: int, tied: bool) -> None:
    """Weights by which every bias and norm counts and logits deviate by about 3.

    Patches are embedded small, so that the epsilon of the tower's first norm, which no config holds, has an effect. With
    tied embeddings the last norm's weights have both signs, or every token would predict itself. Norms whose weights are stored less
    one begin at 0 (Qwen3.5's, but for those of the tower and of linear attention).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float, mean: float = 0.0) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel()
            if tied and name.endswith("language_model.norm.weight"):
                normal(parameter, 1.0)
            elif "norm" in name or "ln_q" in name:
                whole = name.endswith("weight") and not isinstance(
                    model.get_submodule(name.rpartition(".")[0]), Qwen3_5RMSNorm
                )
                normal(parameter, 0.2, mean=1.0 if whole else 0.0)
            elif "patch_embed" in name or "pos_embed" in name:
                normal(parameter, 0.01 / math.sqrt(fan_in) if name.endswith("proj.weight") else 0.01)
            elif name.endswith("bias"):
                normal(parameter, 0.3)
            elif "embed_tokens" in name:
                normal(parameter, 3.0 / math.sqrt(fan_in) if tied else 1.0)
            elif "lm_head" in name:
                normal(parameter, 3.0 / math.sqrt(fan_in))
            else:
                gain = 1.3 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0
                normal(parameter, gain / math.sqrt(fan_in))


def published(name: str, renamed: dict[str, str]) -> str:
    """A weight's name in published files."""
    for ours, theirs in renamed.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def write_checkpoint(family: Family) -> None:
    """The hub directory of a family: its config is written first and the model made from it."""
    out = family.directory
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(family.not_special)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer.json").chmod(0o644)
    write_json(out / "config.json", resolve_ids(family.config, tokenizer))
    write_json(out / "generation_config.json", resolve_ids(family.generation, tokenizer))
    write_json(out / "tokenizer_config.json", tokenizer_config(tokenizer, family.template))
    write_json(out / "preprocessor_config.json", family.preprocessor)
    if family.video is not None:
        write_json(out / "video_preprocessor_config.json", family.video)
    write_json(out / "chat_template.json", {"chat_template": family.template})
    config = AutoConfig.from_pretrained(out)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    tied = config.tie_word_embeddings
    randomise(model, family.seed, tied)
    if family.placed is not None:
        write_folders(family, model)
        return
    weights = {published(name, family.renamed): tensor for name, tensor in model.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    write_tensors(out / "model.safetensors", weights)


def write_folders(family: Family, model: torch.nn.Module) -> None:
    """The weights in the files of a pipeline, random ones of its other parts among them, and the index of all."""
    generator = torch.Generator().manual_seed(family.seed)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        file, stored = family.placed(name)
        files.setdefault(file, {})[stored] = tensor
    last = max(file for file in files if file.startswith("transformer/"))
    files[last] |= {name: torch.randn(shape, generator=generator) for name, shape in family.beside.items()}
    for file, tensors in files.items():
        (family.directory / file).parent.mkdir(exist_ok=True)
        write_tensors(family.directory / file, tensors)
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(family.directory / "model.safetensors.index.json", index)


def write_fresh(family: Family) -> None:
    """`fresh/`: what today's library saves for the checkpoint, without the weights, and how it names each of them."""
    out, fresh = family.directory, family.directory / "fresh"
    fresh.mkdir(exist_ok=True)
    model, info = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{family.name}: loaded with {info}")
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory)
        model.save_pretrained(saved)
        AutoProcessor.from_pretrained(out).save_pretrained(saved)
        names = same_tensors(weight_files(out), saved / "model.safetensors", set(family.beside))
        write_json(fresh / "names.json", names)
        for path in sorted(saved.iterdir()):
            if path.name not in ("model.safetensors", "tokenizer.json"):
                (fresh / path.name).write_text(path.read_text())


def same_tensors(old: list[Path], new: Path, left_out: set[str]) -> dict[str, str]:
    """Names in `old` and the names of the same tensors in `new`; all but those `left_out` must have a partner."""
    ours, theirs = {name: tensor for path in old for name, tensor in load_file(path).items()}, load_file(new)
    by_bytes = {tensor.numpy().tobytes(): name for name, tensor in theirs.items()}
    names = {name: by_bytes.get(tensor.numpy().tobytes()) for name, tensor in sorted(ours.items())}
    lone = {name for name, other in names.items() if other is None}
    if lone != left_out or set(names.values()) - {None} != set(theirs):
        raise SystemExit(f"{old}: names do not match: {json.dumps(names)}")
    return names
