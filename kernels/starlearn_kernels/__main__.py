"""Print the route of a shape and the reason: python -m starlearn_kernels --k 4 --v 32000."""

import argparse
from collections.abc import Sequence

import torch

from starlearn_kernels.plan import plan_torch
from starlearn_kernels.routes import choose_route

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m starlearn_kernels", description=__doc__)
    parser.add_argument("--k", type=int, default=1, help="passes K")
    parser.add_argument("--n", type=int, default=1024, help="rows N (does not change the route)")
    parser.add_argument("--d", type=int, default=2048, help="width D")
    parser.add_argument("--v", type=int, default=32000, help="vocabulary V")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-workspace-mb", type=float, default=64)
    args = parser.parse_args(argv)
    for name in ("k", "n", "d", "v"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    choice = choose_route(device, dtype, args.k, args.d, args.v)
    print(f"K = {args.k}, N = {args.n}, D = {args.d}, V = {args.v}, {args.dtype} on {device}")
    print(f"route: {choice.route}")
    print(f"why: {choice.reason}")
    try:
        print(_blocks(choice.route, device, dtype, args))
    except ValueError as error:
        print(f"error: {error}")
        return 2
    logits = args.k * args.n * args.v * 4 / 1e6
    print(f"the logits that are not stored: {logits:.1f} MB")
    return 0


def _blocks(route: str, device: torch.device, dtype: torch.dtype, args: argparse.Namespace) -> str:
    """Return the block sizes and the workspace of a route as text."""
    if route == "triton-fused":
        looks = "once" if args.k == 1 else "twice"
        return f"tiles stay on the chip; the product is computed {looks}; workspace 2 to 3 MB"
    exact = dtype if device.type == "cuda" else torch.float32
    plan = plan_torch(
        device.type,
        args.k,
        args.d,
        args.v,
        itemsize=exact.itemsize,
        copy_weight=exact != dtype,
        max_workspace_mb=args.max_workspace_mb,
    )
    looks = "once" if args.k == 1 or plan.keep else "twice"
    return (
        f"blocks: {plan.tokens} tokens x {args.k} passes, {plan.columns} columns; "
        f"the product is computed {looks}; workspace {plan.workspace_bytes / 1e6:.1f} MB "
        f"of {args.max_workspace_mb:g} MB"
    )


if __name__ == "__main__":
    raise SystemExit(main())
