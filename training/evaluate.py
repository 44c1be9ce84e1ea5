"""Answers a bag's instructions with transformers, without eviction, and reports exact answers per question type; or, for a long drive,
each alone from the newest frames and the frames that show the answer, as a search that finds them would bring them."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import DynamicCache, SmolVLMForConditionalGeneration

from bag import read_bag
from dataset import TOKENS_PER_FRAME, Codec, Stream
from model import frame_features, pixels
from runs import model_pixels
from streams import RECALLED, UNITS

RECENT, MOST = 24, UNITS  # newest frames, and recalled ones at most, when a question is asked alone


class Player:
    """A conversation with the model: feeds a stream's new tokens into a growing KV cache and decodes greedily."""

    def __init__(self, model: SmolVLMForConditionalGeneration, codec: Codec, system_prompt: str | None):
        self.model, self.codec = model, codec
        self.stream, self.features, self.fed = Stream(codec), [], 0
        self.cache = DynamicCache(config=model.config.text_config)
        self.stream.begin(system_prompt)

    def feed(self) -> torch.Tensor:
        """Runs the stream's tokens that the model has not read yet; returns the logits after the last of them."""
        ids = torch.tensor(self.stream.ids[self.fed :])
        embeds = self.model.get_input_embeddings()(ids)
        for i, (frame, part) in enumerate(zip(self.stream.frame[self.fed :], self.stream.part[self.fed :])):
            if frame >= 0:
                embeds[i] = self.features[frame][part]
        self.fed += len(ids)
        hidden = self.model.model.text_model(inputs_embeds=embeds[None], past_key_values=self.cache).last_hidden_state
        return self.model.lm_head(hidden[0, -1])

    def see(self, seconds: float, features: torch.Tensor) -> None:
        """Takes a frame's image tokens [9, hidden]."""
        self.stream.add_frame((0, len(self.features)), seconds)
        self.features.append(features)

    def ask(self, text: str, limit: int = 12) -> str:
        """Answers a question."""
        self.stream.add_question(text)
        answer = []
        for _ in range(limit):
            token = int(self.feed().argmax())
            self.stream.write([token])
            if token == self.codec.end:
                break
            answer.append(token)
        if self.stream.ids[-1] != self.codec.end:
            self.stream.control(self.codec.end)
        self.stream.text = "\n"
        return self.codec.decode(answer).strip()


@torch.no_grad()
def answers(
    model: SmolVLMForConditionalGeneration, codec: Codec, bag: Path, black: bool = False, batch: int = 64
) -> list[dict]:
    """The bag's instructions, each with `given`, the model's answer, and `length`, the stream's length in tokens."""
    told = yaml.safe_load((bag / "instructions.yaml").read_text())
    frames = read_bag(bag)
    images = np.stack([model_pixels(jpeg) for _, jpeg in frames])
    images = np.zeros_like(images) if black else images
    features = torch.cat([frame_features(model, pixels(images[i : i + batch])) for i in range(0, len(images), batch)])
    assert features.shape[1] == TOKENS_PER_FRAME
    resets, asked = sorted(told.get("resets", [])), sorted(told["instructions"], key=lambda entry: entry["at"])
    results, player, epoch, next_reset, row = [], None, 0.0, 0, 0

    def take(limit: float) -> None:
        nonlocal player, epoch, next_reset, row
        while row < len(frames) and frames[row][0] <= limit:
            if player is None or (next_reset < len(resets) and resets[next_reset] <= frames[row][0]):
                player, epoch = Player(model, codec, told.get("system_prompt")), frames[row][0]
                while next_reset < len(resets) and resets[next_reset] <= frames[row][0]:
                    next_reset += 1
            player.see(frames[row][0] - epoch, features[row])
            row += 1

    for entry in asked:
        take(entry["at"])
        given = player.ask(entry["text"])
        results.append({**entry, "given": given, "length": len(player.stream.ids)})
    return results


@torch.no_grad()
def oracle(
    model: SmolVLMForConditionalGeneration,
    codec: Codec,
    bag: Path,
    layout: str,
    others: int,
    black: bool = False,
    batch: int = 64,
) -> list[dict]:
    """The bag's instructions, each with `given`, the answer from the RECENT newest frames and those nearest `shown`, with `others` random
    older ones among these, in the order of time, where `layout` says; "plain" leaves them out."""
    told, frames = yaml.safe_load((bag / "instructions.yaml").read_text()), read_bag(bag)
    times = np.array([seconds for seconds, _ in frames]) - frames[0][0]
    images = np.stack([model_pixels(jpeg) for _, jpeg in frames])
    images = np.zeros_like(images) if black else images
    features = torch.cat([frame_features(model, pixels(images[i : i + batch])) for i in range(0, len(images), batch)])
    rng, results = np.random.default_rng(0), []
    for entry in told["instructions"]:
        now = int(np.searchsorted(times, entry["at"], side="right"))
        first = max(0, now - RECENT)
        wanted = {int(np.abs(times - seconds).argmin()) for seconds in entry.get("shown", [])}
        count = min(others, MOST - len(wanted), first)
        more = rng.choice(first, count, replace=False).tolist() if count > 0 else []
        recalled = [] if layout == "plain" else sorted({row for row in wanted if row < first} | set(more))
        recent = list(range(first, now))
        order = [*recalled, *recent] if layout == "before" else [*recent, *recalled]
        player = Player(model, codec, told.get("system_prompt"))
        for row in order + recent[-1:] * (layout == "again" and bool(recalled)):
            player.see(times[row], features[row])
        results.append({**entry, "given": player.ask(entry["text"]), "length": len(player.stream.ids)})
    return results


def report(results: list[dict]) -> dict[str, float]:
    """Share of exact answers per type and overall."""
    right = defaultdict(list)
    for entry in results:
        accepted = {answer.lower() for answer in (entry["answer"], *entry.get("accept", []))}
        for key in (entry["type"], *([f"[{entry['cell']}]"] if "cell" in entry else [])):
            right[key].append(entry["given"].lower() in accepted)
    shares = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    return {**shares, "all": float(np.mean([hit for key, hits in right.items() if key[0] != "[" for hit in hits]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("../models/demo"))
    parser.add_argument("--bag", type=Path, default=Path("../bags/eval"))
    parser.add_argument("--black", action="store_true", help="also with black images")
    parser.add_argument(
        "--oracle", choices=["plain", *RECALLED], help="each alone, with the frames that show the answer"
    )
    parser.add_argument("--others", type=int, default=0, help="oracle: so many random older frames among them")
    parser.add_argument("--out", type=Path, help="write every answer, one JSON object a line")
    args = parser.parse_args()
    model = SmolVLMForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    codec = Codec(args.model)
    for black in [False, True] if args.black else [False]:
        if args.oracle:
            results = oracle(model, codec, args.bag, args.oracle, args.others, black)
        else:
            results = answers(model, codec, args.bag, black)
        print(
            "black images" if black else "images",
            f"({len(results)} questions, longest stream {max(r['length'] for r in results)} tokens)",
        )
        for kind, share in report(results).items():
            print(f"  {kind:12} {100 * share:5.1f} %")
        if args.out and not black:
            args.out.write_text("".join(json.dumps(entry) + "\n" for entry in results))


if __name__ == "__main__":
    main()
