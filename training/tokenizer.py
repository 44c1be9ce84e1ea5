"""Trains the demo model's byte-level BPE tokenizer on the stream's own text and saves it as a hub tokenizer."""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dataset import SPECIAL, SYSTEM_PROMPT
from questions import PHRASES
from runs import COLORS, SHAPES

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
WORDS = (
    "the a an is are was were what where which how when who why do does did you see in on of to from left right near "
    "far go stop turn move forward back robot room wall door floor object objects camera image describe this that there "
    "it yes no one two three many any should can now before after last first next white orange gray brown table "
    "chair person"
)


def corpus() -> list[str]:
    """The text that streams are made of, plus common words, repeated by how much each should count."""
    text = []
    for kind in PHRASES.values():
        for phrase in kind:
            for color in COLORS:
                for shape in SHAPES:
                    question = phrase.format(shape=shape, object=f"{color} {shape}")
                    text += [f"\n\n{question}\nAssistant: {color}", f"\nUser: {question}"]
    text += [f"\nFrame from {a:02}:{b:02}:" for a in range(60) for b in range(60)]
    text += [f" {number}" for number in range(10)] * 50
    text += [f"System: {SYSTEM_PROMPT}\nUser:"] * 200
    text += [" " + WORDS, WORDS] * 20
    return text


def build(vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with the special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.json."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))

    def added(token: str) -> dict[str, object]:
        return {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    named = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[5], "unk_token": SPECIAL[5]}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {**added(t), "special": True} for t in SPECIAL},
        "additional_special_tokens": SPECIAL[2:5],
        **named,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "processor_class": "SmolVLMProcessor",
        "tokenizer_class": "GPT2Tokenizer",
    }
    names = {**named, "additional_special_tokens": SPECIAL[2:5]}
    for file, content in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", names),
        ("chat_template.json", {"chat_template": CHAT_TEMPLATE}),
    ):
        (out / file).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("../models/demo"))
    parser.add_argument("--vocabulary", type=int, default=768)
    args = parser.parse_args()
    save(build(args.vocabulary), args.out)
