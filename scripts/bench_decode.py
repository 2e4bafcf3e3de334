"""Decoding speed compared with `transformers` on PyTorch eager and with llama.cpp, with the same weights.

    python scripts/bench_decode.py --model=models/smollm2 --json
    python scripts/bench_decode.py [--rows=float32-1x70,…] [--rounds=3] [--tokens=32] [--peers=llama.cpp]

A model directory in Llama's shape (`python -m tfgpt.convert` makes one), or else a GPT-2 of 124 million parameters
with random weights, generates `--tokens` tokens greedily after each prompt. The time is that of the whole call,
including the pass over the prompt. Ours is `Generator.generate`, theirs `model.generate` (eager) and the
server inside the `xllamacpp` wheel (its cache in float16; 8 rows as 8 requests at once). Each runs in a separate
process. The processes of a row stay alive and take turns, so that other work on the machine hits all alike: a ratio
is the median over the turns. On a busy machine threads that wait for each other by spinning (PyTorch's, llama.cpp's)
lose far more than ours: compare with --threads=1, and by CPU time, there. CPU seconds are those of the whole process.

It needs torch and transformers; llama.cpp is left out where `xllamacpp` and `gguf` are missing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ROWS = tuple(
    f"{dtype}-{batch}x{prompt}" for dtype in ("float32", "bfloat16") for batch in (1, 8) for prompt in (70, 512)
)
PEERS = ("transformers", "llama.cpp")
TARGETS = {"transformers": 2.5, "llama.cpp": 0.9}
CONTEXT, VOCABULARY = 1024, 50257

Write = Callable[[np.ndarray, int], list[list[int]]]


def main() -> None:
    """Prints a card and, at the end, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end in one line of JSON")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"dtype-BATCHxPROMPT (default: {','.join(ROWS)})")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each process (default: 3)")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a row (default: 32)")
    parser.add_argument("--model", help="a model directory in Llama's shape; none: a random GPT-2")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model (default: 12)")
    parser.add_argument("--width", type=int, default=768, help="its width (default: 768)")
    parser.add_argument("--threads", type=int, default=0, help="threads of each process; 0: its default (default: 0)")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help=f"programs to compare with (default: {','.join(PEERS)})"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, Path(arguments.directory), arguments.dtype)
        return
    peers = [peer for peer in arguments.peers.split(",") if peer]
    if "llama.cpp" in peers and not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")):
        peers.remove("llama.cpp")
        print("llama.cpp is left out: pip install xllamacpp gguf")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'row':<16}{'ours tok/s':>11}{'CPU ms/tok':>11}"
        + "".join(f"{peer:>14}{'CPU':>8}{'ratio':>7}{'by CPU':>8}" for peer in peers)
    )
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if arguments.model:
            for path in Path(arguments.model).glob("*.*"):
                (directory / path.name).symlink_to(path.resolve())
        else:
            save_model(directory, arguments.layers, arguments.width)
        for dtype in dict.fromkeys(row.split("-")[0] for row in arguments.rows.split(",")):
            contestants = [Contestant(worker, directory, dtype, arguments.threads) for worker in ("ours", *peers)]
            for row in arguments.rows.split(","):
                if row.startswith(dtype):
                    figures[row] = compare(row, contestants, arguments.rounds, arguments.tokens)
                    print_row(row, figures[row], peers)
            for contestant in contestants:
                contestant.end()
    for peer in peers:
        short = [row for row, figure in figures.items() if figure[peer]["ratio"] < TARGETS[peer]]
        reached = "below it: " + ", ".join(short) if short else "reached in all"
        print(f"target: {TARGETS[peer]} times {peer} in every row; {reached}")
    if arguments.json:
        ratios = {row: {peer: round(figure[peer]["ratio"], 3) for peer in peers} for row, figure in figures.items()}
        print(json.dumps({"benchmark": "decode", "ratios": ratios, "figures": figures}))


def print_row(row: str, figure: dict[str, Any], peers: list[str]) -> None:
    """A line of the card."""
    line = f"{row:<16}{figure['ours']['tokens_per_second']:>11.1f}{figure['ours']['cpu_ms_per_token']:>11.1f}"
    for peer in peers:
        theirs = figure[peer]
        line += f"{theirs['tokens_per_second']:>14.1f}{theirs['cpu_ms_per_token']:>8.1f}{theirs['ratio']:>7.2f}"
        line += f"{theirs['cpu_ratio']:>8.2f}"
    print(line + f"  first tokens equal: {figure['agreement']}", flush=True)


class Contestant:
    """A process that generates tokens on request."""

    def __init__(self, worker: str, directory: Path, dtype: str, threads: int):
        self.worker = worker
        command = [sys.executable, __file__, f"--worker={worker}", f"--directory={directory}", f"--dtype={dtype}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS") if threads else ()
        environment |= dict.fromkeys(names, str(threads))
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def turn(self, batch: int, prompt: int, tokens: int) -> dict[str, Any]:
        """One call: wall and CPU seconds, the first row's tokens."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([batch, prompt, tokens]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise SystemExit(f"{self.worker} ended with exit code {self.process.wait()}")

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(row: str, contestants: list[Contestant], rounds: int, tokens: int) -> dict[str, Any]:
    """Turns of all contestants for one row."""
    batch, prompt = map(int, row.split("-")[1].split("x"))
    answers: dict[str, list[dict[str, Any]]] = {contestant.worker: [] for contestant in contestants}
    for contestant in contestants:
        contestant.turn(batch, prompt, min(4, tokens))  # Traces, allocates.
    for _ in range(rounds):
        for contestant in contestants:
            answers[contestant.worker].append(contestant.turn(batch, prompt, tokens))
    figure: dict[str, Any] = {}
    for worker, turns in answers.items():
        pairs = list(zip(turns, answers["ours"]))
        figure[worker] = {
            "tokens_per_second": batch * tokens / statistics.median(turn["seconds"] for turn in turns),
            "cpu_ms_per_token": 1000 * statistics.median(turn["cpu"] for turn in turns) / (batch * tokens),
            "ratio": statistics.median(theirs["seconds"] / own["seconds"] for theirs, own in pairs),
            "cpu_ratio": statistics.median(theirs["cpu"] / own["cpu"] for theirs, own in pairs),
        }
    written = [turns[0]["tokens"] for turns in answers.values()]
    equal = [int(np.cumprod(np.equal(written[0], other)).sum()) for other in written[1:]]
    figure["agreement"] = ", ".join(map(str, equal))
    return figure


def save_model(directory: Path, layers: int, width: int) -> None:
    """A GPT-2 with random weights as `transformers` saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=width, n_layer=layers, n_head=width // 64,
        initializer_range=0.05, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)


def work(worker: str, directory: Path, dtype: str) -> None:
    """Generates tokens for each request on standard input."""
    write = {"ours": ours, "transformers": theirs, "llama.cpp": llama}[worker](directory, dtype)
    for line in sys.stdin:
        batch, prompt, tokens = json.loads(line)
        ids = np.random.default_rng(0).integers(0, 256, [batch, prompt]).astype(np.int32)
        wall, cpu = time.perf_counter(), time.process_time()
        written = write(ids, tokens)
        answer = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": written[0]}
        assert all(len(row) == tokens for row in written)
        print("ANSWER " + json.dumps(answer), flush=True)


def ours(directory: Path, dtype: str) -> Write:
    """`Generator.generate`."""
    from tfgpt.generation.config import SamplingConfig
    from tfgpt.generation.decode_steps import CompiledDecodeFunctions
    from tfgpt.generation.generator import Generator, transpose_kernels_for_decoding
    from tfgpt.model.checkpoints.huggingface import load_decoder
    from tfgpt.tokenization.train_tokenizer import byte_tokenizer

    generator: Any = Generator(transpose_kernels_for_decoding(load_decoder(directory, dtype=dtype)), byte_tokenizer())
    # No text may end early.
    generator.stop_tokens, generator.decoding = (), CompiledDecodeFunctions(generator.decoder, ())

    def write(ids: np.ndarray, tokens: int) -> list[list[int]]:
        config = SamplingConfig(max_new_tokens=tokens, temperature=0.0)
        return [found.token_ids for [found] in generator.generate(list(ids), config)]

    return write


def theirs(directory: Path, dtype: str) -> Write:
    """`transformers` generate."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()

    def write(ids: np.ndarray, tokens: int) -> list[list[int]]:
        prompt = torch.tensor(ids.astype(np.int64))
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            found = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        return found[:, ids.shape[1] :].tolist()

    return write


def llama(directory: Path, dtype: str) -> Write:
    """llama.cpp's server, inside this process."""
    import xllamacpp

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    path = directory / f"{dtype}.gguf"
    write_gguf(directory, path, dtype)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel, parameters.n_ctx, parameters.warmup = 8, 8 * CONTEXT, True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    callers = concurrent.futures.ThreadPoolExecutor(8)

    def one(ids: np.ndarray, tokens: int) -> list[int]:
        request = {
            "prompt": ids.tolist(), "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        }  # fmt: skip
        answer = server.handle_completions(request)
        assert answer["timings"]["prompt_n"] == len(ids) and answer["timings"]["predicted_n"] == tokens, answer
        named = [int(name) for name in re.findall(r"\[(\d+)\]", answer["choices"][0]["text"])]
        return named if len(named) == tokens else [-1] * tokens

    return lambda ids, tokens: list(callers.map(lambda row: one(row, tokens), ids))


def write_gguf(directory: Path, path: Path, dtype: str) -> None:
    """The model as llama.cpp reads it, with a made-up tokenizer."""
    import gguf

    config = json.loads((directory / "config.json").read_text())
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    if architecture == "gpt2":
        vocabulary, tensors = VOCABULARY, gpt2_tensors(directory, config["n_layer"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        vocabulary, tensors = config["vocab_size"], llama_tensors(directory, config)
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_rope_dimension_count(config["head_dim"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # Tokens are named after their ids, but for the last ones, which the reader of the vocabulary wants to see.
    characters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    characters += [chr(256 + number) for number in range(256 - len(characters))]
    characters += ["ab", "[end]"]
    names = [f"[{number}]" for number in range(vocabulary - len(characters))]
    writer.add_token_list([*names, *characters])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary - 1)
    kind = gguf.GGMLQuantizationType.F32 if dtype == "float32" else gguf.GGMLQuantizationType.BF16

    for name, tensor in tensors.items():
        wide = tensor.ndim == 2 and name != "position_embd.weight"
        stored = kind if wide else gguf.GGMLQuantizationType.F32
        content = gguf.quants.quantize(np.ascontiguousarray(tensor, np.float32), stored)
        writer.add_tensor(name, content, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gpt2_tensors(directory: Path, layers: int) -> dict[str, np.ndarray]:
    """GPT-2's tensors under llama.cpp's names."""
    from safetensors.numpy import load_file

    found = load_file(directory / "model.safetensors")
    names = {
        "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    tensors = {
        "token_embd.weight": found["transformer.wte.weight"],
        "position_embd.weight": found["transformer.wpe.weight"],
    }
    for part in ("weight", "bias"):
        tensors[f"output_norm.{part}"] = found[f"transformer.ln_f.{part}"]
        for layer in range(layers):
            for theirs_name, name in names.items():
                tensor = found[f"transformer.h.{layer}.{theirs_name}.{part}"]
                tensors[f"blk.{layer}.{name}.{part}"] = tensor.T if tensor.ndim == 2 else tensor
    return tensors


def llama_tensors(directory: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """A Llama's tensors, head tied, under llama.cpp's names; it pairs RoPE's numbers otherwise (neighbours)."""
    from safetensors.numpy import load_file

    found = load_file(directory / "model.safetensors")
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {
        "token_embd.weight": found["model.embed_tokens.weight"],
        "output_norm.weight": found["model.norm.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        for theirs_name, name in names.items():
            tensor = found[f"model.layers.{layer}.{theirs_name}.weight"]
            if name in heads:
                halves = tensor.reshape(heads[name], 2, -1, tensor.shape[1])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            tensors[f"blk.{layer}.{name}.weight"] = tensor
    return tensors


if __name__ == "__main__":
    main()
