"""A recurrent network learns to write, character by character: a GRU inside of `tl.scan`.

    python examples/characters.py                     the language reference of this very Python
    python examples/characters.py --text novel.txt --steps 5000 --hidden 512
    python examples/characters.py --temperature 0.5 --start "The statement "

`tl.scan` runs one step of the network along a text: its body is traced once, however long the text
is, and its derivative is a second scan from the end. The same step writes the sample: there each
character that is drawn is the input of the next step.

The default text is `pydoc_data.topics`, which comes with Python.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from typing import Any

import numpy as np

import tensorlite as tl
from tensorlite import nn, optim, random


class GRU(nn.Module):
    """A gated recurrent unit (Cho et al., EMNLP 2014) with the reset gate behind the product."""

    def __init__(self, inner: int, hidden: int, key: tl.Tensor):
        k1, k2 = random.split(key)
        self.of_input = nn.Linear(inner, 3 * hidden, key=k1)
        self.of_state = nn.Linear(hidden, 3 * hidden, key=k2)

    def __call__(self, state: tl.Tensor, x: tl.Tensor) -> tl.Tensor:
        """The state (N, hidden) after an input (N, inner)."""
        size = state.shape[-1]
        a, b = self.of_input(x), self.of_state(state)
        reset = tl.sigmoid(a[:, :size] + b[:, :size])
        update = tl.sigmoid(a[:, size : 2 * size] + b[:, size : 2 * size])
        new = tl.tanh(a[:, 2 * size :] + reset * b[:, 2 * size :])
        return update * state + (1 - update) * new


class Writer(nn.Module):
    """Numbers of characters in, logits of the next one out."""

    def __init__(self, characters: int, hidden: int, key: tl.Tensor):
        k1, k2, k3 = random.split(key, 3)
        self.embedding = nn.Embedding(characters, 64, key=k1)
        self.cell = GRU(64, hidden, k2)
        self.head = nn.Linear(hidden, characters, key=k3)
        self.hidden = hidden

    def start(self, rows: int) -> tl.Tensor:
        """The state before the first character."""
        return tl.zeros((rows, self.hidden))

    def __call__(self, state: tl.Tensor, text: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        """The last state, and logits (T, N, characters), of texts (T, N)."""
        # What needs no state is computed at once, before the scan and behind it.
        state, states = tl.scan(self._step, state, self.embedding(text))
        return state, self.head(states)

    def _step(self, state: tl.Tensor, x: tl.Tensor) -> tuple[tl.Tensor, tl.Tensor]:
        state = self.cell(state, x)
        return state, state

    def write(self, prompt: tl.Tensor, length: int, temperature: float, key: tl.Tensor) -> Any:
        """So many character numbers to follow those of a prompt (T,)."""
        state, logits = self(self.start(1), tl.expand_dims(prompt, axis=1))

        def step(carry: Any, key: tl.Tensor) -> Any:
            state, logits = carry
            drawn = random.categorical(key, logits / temperature)
            state, logits = self(state, tl.expand_dims(drawn, axis=0))
            return (state, logits[-1]), drawn[0]

        return tl.scan(step, (state, logits[-1]), random.split(key, length))[1]


def loss_fn(model: Writer, text: tl.Tensor) -> tl.Tensor:
    """The mean cross-entropy of each character of texts (T + 1, N) after those before it."""
    _, logits = model(model.start(text.shape[1]), text[:-1])
    return tl.mean(nn.softmax_cross_entropy(logits, text[1:]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--text", type=pathlib.Path, help="a text in UTF-8; default: Python's language reference")
    add("--steps", type=int, default=600, help="training steps (default %(default)s)")
    add("--hidden", type=int, default=256, help="size of the state (default %(default)s)")
    add("--length", type=int, default=64, help="characters of a text (default %(default)s)")
    add("--batch-size", type=int, default=32, help="texts of a step (default %(default)s)")
    add("--temperature", type=float, default=0.7, help="of the sample (default %(default)s)")
    add("--start", default="The ", help="how the sample begins (default %(default)r)")
    args = parser.parse_args()
    for option in ("steps", "hidden", "length", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    if not args.temperature > 0:
        parser.error(f"--temperature must be positive, got {args.temperature}")
    return args


def main() -> None:
    """Train on pieces of the text, then write."""
    args = parse()
    try:
        text = args.text.read_text(encoding="utf-8") if args.text else language_reference()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"--text {args.text}: {error}")
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    if not args.start or not set(args.start) <= set(alphabet):
        sys.exit(f"--start must be made of characters of the text, got {args.start!r}")
    if len(text) <= args.length + 1:
        sys.exit(f"the text has {len(text)} characters, too few for --length {args.length}")
    print(f"{len(text):,} characters, {len(alphabet)} different ones")
    numbers = np.array([number[character] for character in text], np.int32)

    model = Writer(len(alphabet), args.hidden, random.key(0))
    schedule = optim.cosine_decay(0.003, args.steps)
    opt = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(schedule))
    state = opt.init(model)

    @tl.jit(donate_argnums=(0, 1))
    def step(model: Writer, state: Any, text: Any) -> tuple[Writer, Any, tl.Tensor]:
        loss, grads = tl.value_and_grad(loss_fn)(model, text)
        updates, state = opt.update(grads, state, model)
        return optim.apply_updates(model, updates), state, loss

    rng = np.random.default_rng(0)
    began, losses = time.perf_counter(), []
    for i in range(1, args.steps + 1):
        starts = rng.integers(len(numbers) - args.length, size=args.batch_size)
        batch = numbers[starts + np.arange(args.length + 1)[:, None]]
        model, state, loss = step(model, state, batch)
        losses.append(float(loss))
        if i == 1 or i % 100 == 0 or i == args.steps:
            print(f"step {i}  loss {np.mean(losses[-100:]):.3f}")
    rate = args.steps * args.batch_size * args.length / (time.perf_counter() - began)
    print(f"{rate:,.0f} characters/s; guessing has a loss of {np.log(len(alphabet)):.3f}")

    prompt = tl.asarray([number[character] for character in args.start], dtype=tl.int32)
    write = tl.jit(Writer.write, static_argnums=(2, 3))
    written = np.asarray(write(model, prompt, 400, args.temperature, random.key(1)))
    print("-" * 72 + f"\n{args.start}" + "".join(alphabet[i] for i in written))


def language_reference() -> str:
    """What `help("FUNCTIONS")` and the like print, without its tables."""
    from pydoc_data.topics import topics

    lines = [line for name in sorted(topics) for line in topics[name].splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("+", "|")))


if __name__ == "__main__":
    main()
