"""Makes `tokenizer.json` beside it: SmolVLM2's tokenizer (Apache-2.0), cut down to what the prompts of cases.py use, with the real ids.

Command: `.venv/bin/python tests/video2lora/golden/make_tokenizer.py FILE > tokenizer.json`, FILE being the hub's tokenizer.json of any
SmolVLM2. What is kept: the tokens and merges that are part of a word of a prompt (no other can come up while those words are read), and
the special tokens in them. Checked here: both tokenizers read every prompt alike.
"""

import json
import sys
from pathlib import Path

from cases import PROMPTS
from make import prompt_ids
from tokenizers import Tokenizer


def reduced(full: dict, texts: list[str]) -> dict:
    """The tokenizer's JSON for these texts."""
    specials = [token for token in full["added_tokens"] if any(token["content"] in text for text in texts)]
    whole = Tokenizer.from_str(json.dumps(full))
    words = {word for text in texts for word, _ in whole.pre_tokenizer.pre_tokenize_str(text)}
    kept = {token: number for token, number in full["model"]["vocab"].items() if any(token in word for word in words)}
    merges = [pair for pair in full["model"]["merges"] if "".join(pair) in kept]
    vocab = kept | {token["content"]: token["id"] for token in specials}
    return full | {"added_tokens": specials, "model": full["model"] | {"vocab": vocab, "merges": merges}}


def main(full_file: Path) -> None:
    whole = Tokenizer.from_file(str(full_file))
    ids = [prompt_ids(prompt, tokenizer_file=full_file) for prompt in PROMPTS]
    texts = [whole.decode(row, skip_special_tokens=False) for row in ids]
    small = json.dumps(reduced(json.loads(full_file.read_text()), texts), ensure_ascii=False, separators=(",", ":"))
    assert [Tokenizer.from_str(small).encode(text).ids for text in texts] == ids
    sys.stdout.write(small + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
