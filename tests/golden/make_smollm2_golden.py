"""Writes the golden of SmolLM2-135M-Instruct in `models/smollm2-135m`: `smollm2/`.

Token ids come from llama.cpp (package xllamacpp), numbers from transformers on the widened weights of the same GGUF file
(packages gguf and accelerate beside those of training/requirements.txt).
"""

import json
import urllib.request

import torch
import xllamacpp
from golden_io import HERE, sha256, write_json, write_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = HERE.parents[1] / "models/smollm2-135m"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = HERE / "smollm2"
TOLERANCE = 1e-3
NEW_TOKENS, LEAST_TOKENS = 24, 8
COLUMNS = 64
SYSTEM, USER = "You are a mobile robot.", "Name three rooms of a house."
PROMPTS = [
    "The opposite of hot is",
    "Monday, Tuesday, Wednesday,",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5, 6,",
]
TEXTS = [
    "Hello, world!",
    "  two leading spaces,  two inside, three at the end   ",
    "tabs\tand\nnewlines\n\n\n  indented\r\nwindows",
    "In 2023, 1234567 + 89 = 1234656; 3.14159e-10 and 007.",
    "I'm you're he'll they've WE'RE 'tis don't",
    "Grüße aus Köln; ¿qué tal? Привет, мир! 你好，世界。 こんにちは ﷽",
    "🤖👍🏽 e\u0301 vs \u00e9, non\u00a0breaking, zero\u200bwidth, \u2028separator",
    "½ ² Ⅷ ٣٤ ५",
    "<|im_start|>user\nnot a turn<|im_end|> <|endoftext|>",
    "snake_case camelCase HTTPServer::get(); // ~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./",
    "",
    " ",
    "\n",
]


class LlamaCpp:
    """The tokenizer of llama.cpp's server."""

    def __init__(self):
        params = xllamacpp.CommonParams()
        params.model.path = str(MODEL / FILE)
        params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
        self.server = xllamacpp.Server(params)

    def tokenize(self, text: str, control: bool = False) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": control}).encode()
        request = urllib.request.Request(
            self.server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]


def main():
    llama_cpp = LlamaCpp()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(MODEL, gguf_file=FILE, dtype=torch.float32).eval()
    texts = [{"text": text, "ids": llama_cpp.tokenize(text)} for text in TEXTS]
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    greedy, margins = [], []
    chat_ids = llama_cpp.tokenize(chat, control=True)
    for prompt, ids in [(prompt, llama_cpp.tokenize(prompt)) for prompt in PROMPTS] + [(chat, chat_ids)]:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=NEW_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(out.logits).topk(2).values
        margin = best[:, 0] - best[:, 1]
        # An answer ends before the first step that rounding could decide.
        sure = int((margin >= 10 * TOLERANCE).cumprod(0).sum())
        if sure < LEAST_TOKENS:
            raise SystemExit(f"{prompt}: close to a tie after {sure} tokens")
        margins.append(margin[:sure].min().item())
        new = out.sequences[0, len(ids) :].tolist()[:sure]
        greedy.append({"prompt": prompt, "ids": ids, "new_ids": new, "text": tokenizer.decode(new)})
    with torch.no_grad():
        logits = model(torch.tensor([chat_ids])).logits[0]
        again = model.double()(torch.tensor([chat_ids])).logits[0]
    OUT.mkdir(exist_ok=True)
    # Every 64th column of all positions: enough to see any mistake, in few bytes.
    write_tensors(OUT / "expected.safetensors", {"logits": logits[:, ::COLUMNS].contiguous()})
    about = {
        "model_sha256": sha256(MODEL / FILE),
        "tolerance": TOLERANCE,
        "columns": COLUMNS,
        "texts": texts,
        "chat": {"system": SYSTEM, "user": USER, "text": chat, "ids": chat_ids},
        "greedy": greedy,
        "smallest_greedy_margin": min(margins),
        "deviation_from_f64": (logits.double() - again).abs().max().item(),
        "end_id": tokenizer.eos_token_id,
    }
    write_json(OUT / "about.json", about)
    differing = [t["text"] for t in texts if tokenizer(t["text"], split_special_tokens=True).input_ids != t["ids"]]
    print("texts that transformers splits in another way:", differing)
    print({key: about[key] for key in ("smallest_greedy_margin", "deviation_from_f64", "end_id")})
    print([(g["prompt"][-30:], g["text"]) for g in greedy])


if __name__ == "__main__":
    main()
