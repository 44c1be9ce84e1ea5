"""Makes `fine_tunes/`: what published fine-tunes say otherwise than the checkpoints that they were made of, over the tiny families.

Each folder holds the files that differ from those of its family, `changed.safetensors` the tensors that differ, and `golden.json` and
`golden.safetensors` what transformers makes of both laid together. Where the facts were read stands in docs/checkpoints.md.

Some think: their decoders say the same few tokens whatever they see, each chosen by the one before it, so that a thought is
written, ended and answered behind as a trained model would do it.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from golden_io import HERE, write_json, write_tensors
from PIL import Image
from qwen_checkpoint import FAMILIES, randomise
from qwen_families import MEDIA, PARTS, TEMPLATE_2_5, TEMPLATE_3
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

OUT = HERE / "fine_tunes"
TOLERANCE, TOKENS = 1e-4, 40
PICTURE = "wide.png"
QUESTION = "What is in view?"
LIKELY = 20.0
"""Logit of the token that a thinking decoder says next; the others are near 0."""
QUIET = 0.05
"""What is left of the outputs of attention and of the feed-forward blocks in a thinking decoder, whose tokens must not depend on them."""

# An answer loses its thought once a question follows it, and one is opened in front of the next.
TEMPLATE_THINKING = (
    MEDIA
    + "{%- set last = namespace(asked=-1) -%}"
    + "{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    + "{%- for message in messages -%}"
    + "{{ '<|im_start|>' ~ message.role ~ '\\n' }}"
    + "{%- set said -%}"
    + "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    + PARTS
    + "{%- endif -%}{%- endset -%}"
    + "{%- if message.role == 'assistant' -%}"
    + "{%- set thought = '' -%}"
    + "{%- if '</think>' in said -%}"
    + "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    + "{%- set said = said.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    + "{%- if loop.index0 > last.asked and (loop.last or thought) -%}"
    + "{{ '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"
    + "{{ said ~ '<|im_end|>\\n' }}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}"
)
TEMPLATE_MIMO = TEMPLATE_2_5.replace(
    "You are a helpful assistant.", "You are MiMo, an AI assistant developed by Xiaomi."
)
FORMAT = "Answer the question in the following format:\n<think>\nyour reasoning\n</think>\n\n<answer>\nyour answer\n</answer>."


@dataclass(frozen=True)
class FineTune:
    """What a fine-tune says otherwise than the family in `base`."""

    base: str
    template: str
    config: dict = field(default_factory=dict)  # merged into config.json
    generation: dict = field(default_factory=dict)  # the same of generation_config.json
    tokens: tuple[str, ...] = ()  # in the vocabulary and not special, as in the published tokenizer
    merges: tuple[
        tuple[str, str], ...
    ] = ()  # of the byte-level vocabulary, so that marks are spelled in as many tokens
    system: str = ""  # the system prompt that it is published to be asked with
    opened: str = ""  # what its own inference script writes behind the question, where that opens a thought and the template does not
    behind: str = "Ċ"  # the last token of a question
    says: tuple[str, ...] = ()  # what it says behind that, in tokens
    seed: int | None = None  # of random weights of its own, where its sizes are not those of the family


THINK = ("<think>", "</think>")
MARK = (
    *(("n", "k"), ("hi", "nk"), ("t", "hink"), ("<", "think"), ("<", "/")),
    *(("Ċ", "Ċ"), (">", "ĊĊ")),
)
LINES = (("Ċ", "Ċ"),)
# What those that think say behind the opening of a thought, its marks as tokens of their own and spelled in several.
ANSWER = ("You", "Ġare", "Ġthe", "Ġb", "ob", "<|im_end|>")
MARKED = ("Wh", "o", "?", "Ġi", "t", "Ġwhi", "ch", "</think>", "ĊĊ", *ANSWER)
SPELLED = ("Wh", "o", "?", "Ġi", "t", "</", "think", ">ĊĊ", *ANSWER)
UNTIED = {"tie_word_embeddings": False}
FINE_TUNES = {
    "cosmos_reason1": FineTune("qwen2_5_vl", TEMPLATE_2_5, UNTIED, system=FORMAT, seed=71),
    "robobrain2": FineTune(
        "qwen2_5_vl",
        TEMPLATE_2_5,
        {**UNTIED, "vocab_size": 312},
        {"repetition_penalty": 1.0},
        merges=MARK,
        opened="<think>",
        behind=">",
        says=SPELLED,
        seed=72,
    ),
    "mimo_vl": FineTune(
        "qwen2_5_vl",
        TEMPLATE_MIMO,
        {
            **UNTIED,
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_attention_heads": 8,
            "num_hidden_layers": 4,
            "max_window_layers": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 640.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "vision_config": {"out_hidden_size": 64},
            "vocab_size": 312,
        },
        {"repetition_penalty": 1.0},
        merges=MARK,
        says=("<think", ">", *SPELLED),
        seed=73,
    ),
    "qwen3_vl_thinking": FineTune(
        "qwen3_vl",
        TEMPLATE_THINKING,
        generation={"top_p": 0.95, "temperature": 1.0},
        tokens=THINK,
        merges=LINES,
        says=MARKED,
    ),
    "cosmos_reason2": FineTune(
        "qwen3_vl",
        TEMPLATE_3,
        tokens=THINK,
        merges=LINES,
        says=("<think>", *MARKED),
    ),
}


def merge(base: dict, changes: dict) -> dict:
    return base | {
        name: merge(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in changes.items()
    }


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def moved(value, first: int, by: int):
    """The ids of added tokens in a configuration, which come behind those of the vocabulary, from `first` on, that has grown."""
    if isinstance(value, list):
        return [moved(item, first, by) for item in value]
    return value + by if value >= first else value


def with_tokens(fine_tune: FineTune, files: dict[str, dict]) -> None:
    """Gives the tokenizer the fine-tune's merges and added tokens."""
    tokenizer, about = files["tokenizer.json"], files["tokenizer_config.json"]
    vocabulary, added = tokenizer["model"]["vocab"], tokenizer["added_tokens"]
    first = len(vocabulary)
    for left, right in fine_tune.merges:
        vocabulary.setdefault(left + right, len(vocabulary))
        tokenizer["model"]["merges"].append([left, right])
    by = len(vocabulary) - first
    for token in added:
        token["id"] += by
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for token in fine_tune.tokens:
        added.append({"id": len(vocabulary) + len(added), "content": token, **flags})
    about["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
    }
    for config in (files["config.json"], files["generation_config.json"], files["config.json"].get("text_config", {})):
        config |= {name: moved(value, first, by) for name, value in config.items() if name.endswith("token_id")}


def random_weights(directory: Path, seed: int) -> dict[str, torch.Tensor]:
    """Of all tensors, in published names."""
    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomise(model, seed, tied=False)
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    renamed = {}
    for name, tensor in model.state_dict().items():
        first = next((ours for ours in names if name.startswith(ours)), "")
        renamed[names.get(first, "") + name[len(first) :]] = tensor.detach()
    return renamed


def thinking(tensors: dict[str, torch.Tensor], ids: list[int]) -> dict[str, torch.Tensor]:
    """The tensors that differ in a decoder that says `ids` one after the other, the first of them behind a line break."""
    embeddings = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    norm = next(
        tensor for name, tensor in tensors.items() if name.endswith(("language_model.norm.weight", "model.norm.weight"))
    )
    quiet = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    changed = {
        name: tensor * QUIET for name, tensor in tensors.items() if name.endswith(quiet) and "visual" not in name
    }
    before = torch.tensor(ids[:-1])
    if len(set(ids)) != len(ids):
        raise SystemExit(f"{ids} has a token twice")
    hidden = embeddings[before].double()
    hidden = hidden / hidden.pow(2).mean(1, keepdim=True).sqrt() * norm.double()
    head = torch.zeros(embeddings.shape, dtype=torch.double)
    # What each says next is orthogonal to what the others do.
    head[torch.tensor(ids[1:])] = torch.linalg.pinv(hidden).T * LIKELY
    return changed | {"lm_head.weight": head.float()}


def messages() -> list[list[dict]]:
    asked = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = [{"type": "text", "text": "And before?"}]
    user, again = {"role": "user", "content": asked}, {"role": "user", "content": text}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    thought = "<think>\nred, then blue\n</think>\n\nA red box."
    said = [{"role": "assistant", "content": [{"type": "text", "text": said}]} for said in (thought, "A red box.")]
    return [
        [user],
        [system, user],
        [user, said[1], again],
        [system, user, said[0], again],
        [user, said[0], again, said[1], again],
    ]


@torch.no_grad()
def expected(directory: Path, fine_tune: FineTune, picture: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rendered = [
        {
            "messages": conversation,
            "text": (text := processor.apply_chat_template(conversation, add_generation_prompt=True)),
            "ids": processor.tokenizer(text, add_special_tokens=False).input_ids,
        }
        for conversation in messages()
    ]
    turn = messages()[0]
    if fine_tune.system:
        turn = [{"role": "system", "content": [{"type": "text", "text": fine_tune.system}]}, *turn]
    text = processor.apply_chat_template(turn, add_generation_prompt=True) + fine_tune.opened
    with Image.open(picture) as image:
        inputs = processor(text=[text], images=[image.convert("RGB")], return_tensors="pt")
    logits = model(**inputs).logits[0]
    told = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0, inputs["input_ids"].shape[1] :]
    decoded = processor.tokenizer.decode(told, skip_special_tokens=True)
    about = {
        "base": fine_tune.base,
        "tolerance": TOLERANCE,
        "picture": PICTURE,
        "system": fine_tune.system,
        "opened": fine_tune.opened,
        "question": QUESTION,
        "max_new_tokens": TOKENS,
        "generated_ids": told.tolist(),
        "generated_text": decoded,
        "templates": rendered,
    }
    return about, {"input_ids": inputs["input_ids"][0].int(), "logits": logits}


def make(name: str, fine_tune: FineTune) -> None:
    base, out = FAMILIES / fine_tune.base, OUT / name
    out.mkdir(parents=True)
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.json")
    files = {file: read(base / file) for file in names}
    before = json.loads(json.dumps(files))
    files["config.json"] = merge(files["config.json"], fine_tune.config)
    files["generation_config.json"] = merge(files["generation_config.json"], fine_tune.generation)
    files["chat_template.json"]["chat_template"] = fine_tune.template
    files["tokenizer_config.json"]["chat_template"] = fine_tune.template
    with_tokens(fine_tune, files)
    changed: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch)
        for file in base.iterdir():
            if file.is_file():
                shutil.copy(file, whole)
        for file, content in files.items():
            (whole / file).write_text(json.dumps(content))
            if content != before[file]:
                write_json(out / file, content)
        tensors = load_file(base / "model.safetensors")
        if fine_tune.seed is not None:
            made = random_weights(whole, fine_tune.seed)
            # Tensors of the same sizes are those of the family.
            changed = {
                name: tensor
                for name, tensor in made.items()
                if name not in tensors or tensors[name].shape != tensor.shape
            }
        if fine_tune.says:
            ids = {**files["tokenizer.json"]["model"]["vocab"]}
            ids |= {token["content"]: token["id"] for token in files["tokenizer.json"]["added_tokens"]}
            said = [ids[token] for token in fine_tune.says]
            changed |= thinking(tensors | changed, [ids[fine_tune.behind], *said])
        save_file(tensors | changed, whole / "model.safetensors", metadata={"format": "pt"})
        about, numbers = expected(whole, fine_tune, base / "golden" / PICTURE)
    write_json(out / "golden.json", about)
    write_tensors(out / "golden.safetensors", numbers)
    if changed:
        write_tensors(out / "changed.safetensors", changed)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    for name, fine_tune in FINE_TUNES.items():
        make(name, fine_tune)


if __name__ == "__main__":
    main()
