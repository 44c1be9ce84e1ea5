"""Small tokenizers in the two shapes that published multimodal checkpoints carry, trained on a few sentences."""

import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "USER: ASSISTANT: User: Assistant: System: You are a mobile robot. Answer briefly.",
    "What is in view? a red box, the blue ball is on the left. Is the door open? the robot",
    "What color is the box? What is the colour of the ball? Should the robot stop?",
    "[INST] [/INST] <<SYS>> <</SYS>> system\n user\n assistant\n\n Frame from 00:00: Frame from 00:01:",
]
BYTES = 256
SMOLLM_SPLIT = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
QWEN2_SPLIT = [
    pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
        behavior="isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]


def special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def byte_level(
    first: list[str],
    markup: list[str],
    merges: int,
    split: list[pre_tokenizers.PreTokenizer],
    normalizer: normalizers.Normalizer | None = None,
    more: tuple[str, ...] = (),
) -> Tokenizer:
    """Byte-level BPE (SmolLM2, Qwen2): `first` opens the vocabulary, `markup` is added behind the merges.

    It learns from the sentences of all, and from `more`.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + BYTES + merges,
        special_tokens=[special(token) for token in first],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, *more], trainer)
    tokenizer.add_special_tokens([special(token) for token in markup])
    return tokenizer


def byte_fallback(markup: list[str], merges: int, prepend_normalizer: bool) -> Tokenizer:
    """BPE over characters with <0x..> tokens for the rest, as converted from a SentencePiece model.

    Spaces become U+2581 in a normalizer that also prepends one to every stretch of text between special tokens (Llama,
    Vicuna), or in a Metaspace pre-tokenizer that prepends only at the start of the text.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(
        [line.replace("\n", " ") for line in CORPUS], trainers.BpeTrainer(vocab_size=merges, show_progress=False)
    )
    learnt = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(BYTES)]
    tokens += sorted(learnt["vocab"], key=learnt["vocab"].get)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if prepend_normalizer:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([special(token) for token in tokens[:3] + markup])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer
