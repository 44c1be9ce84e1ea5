"""Tokenizers of the text families: small vocabularies, everything else as in the published tokenizer.json files."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "You are a mobile robot. Answer briefly. What is in view? A red box, and the blue ball is on the left of it.",
    "What color is the box? What is the colour of the ball? Should the robot stop? The robot should not stop there.",
    "Is the door open? The door is open, the floor is wet, turn right in front of the stairs and wait for the lift.",
    "system user assistant Go to the kitchen and bring the cup to the table in the living room, then come back here.",
    "At 10:30 it was 100 steps to room 100, 2000 in 2024 and 2025; 1000 to 1030.",
]
WORDS_AND_3_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_AND_DIGITS = WORDS_AND_3_DIGITS.replace(r"\p{N}{1,3}", r"\p{N}")


def special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def plain(token: str, normalized: bool = False) -> AddedToken:
    """An added token that decoding with skipped special tokens keeps."""
    return AddedToken(token, special=False, normalized=normalized)


def train(tokenizer: Tokenizer, merges: int, first: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + len(alphabet) + merges,
        special_tokens=[special(token) for token in first],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)


def byte_level(
    pattern: str | None, merges: int, first: list[str], added: list[AddedToken], ignore_merges: bool = False
) -> Tokenizer:
    """Byte-level BPE: text cut by `pattern` (None: GPT-2's), ids of `first` before the bytes', of `added` after all."""
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, merges, first, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.model.ignore_merges = ignore_merges
    tokenizer.add_tokens(added)
    return tokenizer


def llama3() -> Tokenizer:
    """Numbers in threes; a word that is in the vocabulary is one token, whatever the merges would make of it."""
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id"]
    tokenizer = byte_level(WORDS_AND_3_DIGITS, 60, [], [special(f"<|{n}|>") for n in names], ignore_merges=True)
    without_merges = "Ġkitchen"
    tokenizer = replace_last_piece(tokenizer, without_merges)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    return tokenizer


def replace_last_piece(tokenizer: Tokenizer, piece: str) -> Tokenizer:
    """The last piece that was learned, and the merge that makes it, give way to one that no merge makes."""
    state = json.loads(tokenizer.to_str())
    merges = state["model"]["merges"]
    last = "".join(merges.pop())
    vocab = state["model"]["vocab"]
    vocab[piece] = vocab.pop(last)
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def qwen2() -> Tokenizer:
    """Single digits, NFC; three control tokens after the vocabulary."""
    tokenizer = byte_level(WORDS_AND_DIGITS, 50, [], [special(f"<|{n}|>") for n in ("endoftext", "im_start", "im_end")])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    return tokenizer


def qwen3() -> Tokenizer:
    """Qwen2's kind; the marks of a thought are tokens, but not control tokens."""
    tokenizer = qwen2()
    tokenizer.add_tokens([plain("<think>"), plain("</think>")])
    return tokenizer


def gpt_neox() -> Tokenizer:
    """GPT-2's pattern, NFC, and runs of spaces as added tokens."""
    spaces = [plain(" " * n, normalized=True) for n in (8, 4, 3, 2)]
    tokenizer = byte_level(None, 50, ["<|endoftext|>", "<|padding|>"], spaces)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    return tokenizer


def sentence_piece(merges: int, added: list[str]) -> Tokenizer:
    """BPE with a fallback to bytes in SentencePiece's order of ids: control tokens, bytes, pieces, single characters.

    Every pair of pieces that makes a third is a merge, ranked by that third: what SentencePiece does with its scores.
    """
    learner = Tokenizer(models.BPE())
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Digits(individual_digits=True)])
    alphabet = sorted({c for text in CORPUS for c in text.replace(" ", "▁")} | set("Ääéñ0123456789'-:;()[]/<>"))
    train(learner, merges, [], alphabet)
    by_id = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    learned = [piece for piece, _ in by_id if len(piece) > 1]
    pieces = ["▁▁", *learned, "▁▁▁▁"]
    order = ["<unk>", "<s>", "</s>", *added, *(f"<0x{b:02X}>" for b in range(256)), *pieces, *alphabet]
    vocab = {piece: i for i, piece in enumerate(order)}
    known = {*pieces, *alphabet}
    cuts = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in known and p[i:] in known]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=cuts, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([special(t) for t in ("<unk>", "<s>", "</s>", *added)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def llama() -> Tokenizer:
    """As the older files have it: the leading space comes from the normaliser, so after every control token too."""
    tokenizer = sentence_piece(60, [])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(SPACES)
    return tokenizer


def mistral() -> Tokenizer:
    """As the newer files have it: the leading space comes from the pre-tokenizer, at the start of the text only."""
    tokenizer = sentence_piece(60, ["[INST]", "[/INST]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(SPACES)
    return tokenizer
