"""Everything a program may ask of CUDA, asked of the dry run's pretence; prints what fails, one a line, nothing else.

Run by test_dry_run_cuda.py in a process of its own, as the pretence changes torch.
"""

import contextlib
import copy
import inspect
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "local_eval" / "dry_run" / "inside"))
os.environ["PYTHONWARNINGS"] = "ignore"

import numpy as np
import torch
import torch.nn.functional as F
from _dry_run.cuda import install
from torch import nn

install(torch)
FAILED = []


def attempt(name, call):
    try:
        call()
    except Exception as error:
        FAILED.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3)).cuda()
x = torch.randn(4, 3, 8, 8, device="cuda")
y = torch.tensor([0, 1, 2, 0]).to("cuda:0")


def step(kind, **options):
    optimizer = kind(net.parameters(), lr=0.01, **options)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    closure()
    optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()


def optimizers():
    for name, kind in vars(torch.optim).items():
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            continue
        if name in ("Optimizer", "SparseAdam", "Muon"):  # these take other gradients
            continue
        attempt(name, lambda kind=kind: step(kind))
        for form in ("fused", "foreach", "capturable"):
            if form in inspect.signature(kind).parameters:
                attempt(f"{name}({form}=True)", lambda kind=kind, form=form: step(kind, **{form: True}))


def scaled(scaler, autocast):
    optimizer = torch.optim.Adam(net.parameters())
    before = [parameter.clone() for parameter in net.parameters()]
    with autocast:
        loss = F.cross_entropy(net(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    scaler.load_state_dict(scaler.state_dict())
    assert any((a != b).any() for a, b in zip(before, net.parameters(), strict=True)), "no step was taken"


def loaded(map_location):
    buffer = io.BytesIO()
    torch.save({"a": x}, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, map_location=map_location)["a"], x)


def compiled(wrapper):
    """What torch's own wrapper of a compiled net does."""
    assert list(wrapper.state_dict()) == [f"_orig_mod.{name}" for name in net.state_dict()]
    assert list(wrapper._orig_mod.state_dict()) == list(net.state_dict())
    assert not wrapper.eval().training and not wrapper._orig_mod.training and wrapper.train()._orig_mod[0].training
    wrapper.extra = 3
    assert wrapper._orig_mod.extra == 3 and torch.equal(wrapper(x), wrapper._orig_mod(x))
    wrapper.load_state_dict(wrapper.state_dict())
    with contextlib.suppress(RuntimeError):
        wrapper.load_state_dict(net.state_dict())
        raise AssertionError("names without the prefix are taken")


EXPRESSIONS = [
    "torch.cuda.synchronize()",
    "torch.cuda.synchronize('cuda')",
    "torch.cuda.empty_cache()",
    "torch.cuda.memory_allocated()",
    "torch.cuda.memory_reserved(0)",
    "torch.cuda.max_memory_allocated('cuda:0')",
    "torch.cuda.memory_cached()",
    "torch.cuda.max_memory_cached()",
    "torch.cuda.memory_summary()",
    "torch.cuda.memory_stats()",
    "torch.cuda.mem_get_info()",
    "torch.cuda.get_device_properties(0).total_memory",
    "torch.cuda.get_device_properties('cuda')",
    "torch.cuda.get_device_name()",
    "torch.cuda.get_device_name(0)",
    "torch.cuda.get_device_capability()",
    "torch.cuda.Event(enable_timing=True).record()",
    "torch.cuda.Stream()",
    "torch.cuda.current_stream()",
    "torch.cuda.current_stream().synchronize()",
    "torch.cuda.is_current_stream_capturing()",
    "torch.cuda.reset_peak_memory_stats()",
    "torch.cuda.reset_max_memory_allocated()",
    "torch.cuda.reset_max_memory_cached()",
    "torch.cuda.reset_accumulated_memory_stats()",
    "torch.cuda.set_device(0)",
    "torch.cuda.current_device()",
    "torch.cuda.device_count()",
    "torch.cuda.is_initialized()",
    "torch.cuda.init()",
    "torch.cuda.manual_seed(1)",
    "torch.cuda.manual_seed_all(1)",
    "torch.cuda.initial_seed()",
    "torch.cuda.seed_all()",
    "torch.cuda.get_rng_state()",
    "torch.cuda.set_rng_state(torch.cuda.get_rng_state())",
    "torch.cuda.memory_snapshot()",
    "torch.cuda.list_gpu_processes()",
    "torch.cuda.utilization()",
    "torch.cuda.temperature()",
    "torch.cuda.power_draw()",
    "torch.cuda.clock_rate()",
    "torch.cuda.memory_usage()",
    "torch.cuda.can_device_access_peer(0,0)",
    "torch.cuda.get_gencode_flags()",
    "torch.cuda.get_arch_list()",
    "torch.cuda.is_bf16_supported()",
    "torch.cuda.is_bf16_supported(including_emulation=False)",
    "torch.cuda.is_tf32_supported()",
    "torch.cuda.get_sync_debug_mode()",
    "torch.cuda.set_sync_debug_mode(0)",
    "torch.cuda.nvtx.range_push('a')",
    "torch.cuda.nvtx.range_pop()",
    "torch.cuda.nvtx.mark('a')",
    "torch.cuda.get_allocator_backend()",
    "torch.cuda.cudart()",
    "torch.cuda.current_blas_handle()",
    "torch.cuda.caching_allocator_alloc(4)",
    "torch.cuda.graph_pool_handle()",
    "torch.cuda.default_generators[0]",
    "torch.cuda.device_of(x)",
    "torch.cuda.ipc_collect()",
    "torch.cuda.memory.empty_cache()",
    "torch.cuda.memory._record_memory_history()",
    "torch.cuda.amp.custom_fwd(lambda *a: None)",
    "torch.cuda.random.manual_seed_all(3)",
    "torch.cuda.get_per_process_memory_fraction()",
    "torch.cuda.set_per_process_memory_fraction(.5)",
    "torch.cuda._lazy_init()",
    "torch.cuda.check_error(0)",
    "torch.cuda.max_memory_reserved()",
    "x.is_cuda",
    "x.device",
    "x.pin_memory()",
    "x.cuda(non_blocking=True)",
    "x.cuda(0)",
    "x.to(0)",
    "x.to('cuda',torch.float16)",
    "x.to(device='cuda:0',dtype=torch.float64,non_blocking=True)",
    "torch.zeros(3,device=0)",
    "torch.zeros(3).to(torch.device('cuda',0))",
    "torch.Generator('cuda').manual_seed(3)",
    "torch.Generator(device=torch.device('cuda'))",
    "torch.randn(2,device='cuda',generator=torch.Generator('cuda'))",
    "torch.randperm(4,device='cuda')",
    "nn.DataParallel(net)(x)",
    "nn.DataParallel(net,device_ids=[0]).module",
    "nn.DataParallel(net).device_ids",
    "torch.compile(nn.DataParallel(net))(x)",
    "nn.DataParallel(torch.compile(net))(x)",
    "nn.parallel.data_parallel(net,x)",
    "nn.DataParallel(net).cuda().state_dict()",
    "torch.device('cuda').index",
    "torch.device(0)",
    "torch.set_default_device('cuda')",
    "torch.set_default_tensor_type('torch.cuda.FloatTensor')",
    "torch.set_default_tensor_type(torch.cuda.FloatTensor)",
    "torch.backends.cudnn.version()",
    "torch.backends.cudnn.is_available()",
    "setattr(torch.backends.cudnn,'benchmark',True)",
    "setattr(torch.backends.cudnn,'deterministic',True)",
    "torch.backends.cuda.is_built()",
    "setattr(torch.backends.cuda.matmul,'allow_tf32',True)",
    "setattr(torch.backends.cudnn,'allow_tf32',True)",
    "torch.backends.cuda.flash_sdp_enabled()",
    "torch.set_float32_matmul_precision('high')",
    "torch.use_deterministic_algorithms(True)",
    "torch.use_deterministic_algorithms(False)",
    "torch.autocast('cuda').__enter__()",
    "torch.get_autocast_dtype('cuda')",
    "torch.is_autocast_enabled()",
    "torch.get_autocast_gpu_dtype()",
    "torch.set_autocast_gpu_dtype(torch.float16)",
    "torch.version.cuda",
    "torch.random.fork_rng(devices=[0]).__enter__()",
    "torch.random.fork_rng().__enter__()",
    "torch.cuda.device(0).__enter__()",
    "torch.cuda.device('cuda').__enter__()",
    "torch.cuda.stream(torch.cuda.Stream()).__enter__()",
    "torch.tensor([1.],device='cuda').type()",
    "x.type(torch.cuda.FloatTensor)",
    "x.type('torch.cuda.FloatTensor')",
    "torch.cuda.FloatTensor([1,2])",
    "torch.cuda.FloatTensor(3).fill_(0)",
    "isinstance(x,torch.cuda.FloatTensor)",
    "torch.as_tensor([1],device='cuda')",
    "torch.empty_like(x,device='cuda')",
    "net.to('cuda:0',non_blocking=True)",
    "net.to(device=0)",
    "net.to(torch.device('cuda:0'))",
    "next(net.parameters()).is_cuda",
    "torch.accelerator.current_accelerator()",
    "torch.accelerator.is_available()",
    "torch.accelerator.synchronize()",
    "torch.nn.utils.clip_grad_norm_(net.parameters(),1.0)",
    "torch.multiprocessing.get_context('spawn')",
    "torch.cuda.amp.GradScaler(enabled=True,init_scale=1024.)",
    "torch.amp.GradScaler('cuda',enabled=True)",
    "torch.utils.data.DataLoader([1],pin_memory=True,pin_memory_device='cuda')",
    "torch.func.vmap(lambda a:a*2)(x)",
    "torch.func.grad(lambda a:(a**2).sum())(x)",
    "nn.SyncBatchNorm.convert_sync_batchnorm(net)",
    "nn.Module().cuda(0)",
    "torch.from_numpy(__import__('numpy').zeros(2)).cuda()",
    "torch.cuda.get_device_properties(0).multi_processor_count",
    "torch.cuda.get_device_properties(0).uuid",
    "torch.zeros(2,pin_memory=True)",
    "x.get_device()",
    "x.record_stream(torch.cuda.current_stream())",
    "torch.tensor(1,device=torch.device('cuda:0')).cpu().item()",
    "torch.nn.Linear(2,2,device='cuda')",
    "torch.Tensor([1]).cuda(device='cuda')",
]

optimizers()
attempt("GradScaler of torch.cuda.amp", lambda: scaled(torch.cuda.amp.GradScaler(), torch.cuda.amp.autocast()))
if hasattr(torch.amp, "GradScaler"):
    attempt("GradScaler of torch.amp", lambda: scaled(torch.amp.GradScaler("cuda"), torch.autocast("cuda")))
attempt("autocast as a decorator", lambda: torch.cuda.amp.autocast()(lambda: net(x))())
attempt("autocast with a dtype", lambda: torch.autocast(torch.device("cuda").type, torch.bfloat16)(net)(x))
attempt("compile", lambda: torch.compile(net)(x))
attempt("compile, the net within", lambda: compiled(torch.compile(net)))
attempt("compile, a copy", lambda: compiled(copy.deepcopy(torch.compile(net, mode="max-autotune"))))
attempt("compile as a decorator", lambda: torch.compile(mode="reduce-overhead")(lambda value: value + 1)(x))
for where in ("cuda", "cuda:0", torch.device("cuda:0"), {"cuda:1": "cuda:0"}, lambda storage, place: storage.cuda(0)):
    attempt(f"load to {where}", lambda where=where: loaded(where))
for expression in EXPRESSIONS:
    attempt(expression, lambda expression=expression: eval(expression))
    torch.set_default_device("cpu")
assert torch.cuda.get_device_name(0) == "Tesla T4" and torch.cuda.get_device_properties(0).total_memory < 16e9
assert isinstance(np.asarray(torch.ones(2, device="cuda").cpu()), np.ndarray)
print("\n".join(FAILED))
