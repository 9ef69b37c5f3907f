"""Every private name of torch that the project needs, with the reason for it.

Nothing here patches torch. A new torch that moves one of these names is mended in this file alone.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters as dynamo_counters  # the only count of graphs and recompiles
from torch._guards import TracingContext, detect_fake_mode  # what a graph is traced and compiled with
from torch._inductor.custom_graph_pass import (  # how Inductor takes a pass, and a partitioner
    CustomGraphPass,
    CustomPartitionerFn,
    get_hash_for_files,
)
from torch._inductor.inductor_prims import force_stride_order as FORCE_STRIDE_ORDER  # aten has none that is no copy
from torch._inductor.pattern_matcher import stable_topological_sort  # fx has no public sort
from torch._logging import trace_structured  # artifacts for tlparse
from torch._ops import HigherOrderOperator, OpOverload  # what nodes call; public modules have only instances of them
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # what meta["val"] holds
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule  # writes its Python only if called
from torch.fx.node import has_side_effect  # keeps dead-code elimination off; not exported by torch.fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp  # fills meta["val"]
from torch.utils import _pytree as pytree  # the only flattening that gives the path of each leaf
from torch.utils._pytree import tree_leaves
from torch.utils._sympy.interp import sympy_interp  # writes a symbolic size as operators on what it is made of
from torch.utils._sympy.reference import PythonReferenceAnalysis  # as Python's own, as Inductor takes them

INVOKE_SUBGRAPH: HigherOrderOperator = torch.ops.higher_order.invoke_subgraph

__all__ = [
    "FORCE_STRIDE_ORDER",
    "INVOKE_SUBGRAPH",
    "SET_GRAD_ENABLED",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "FakeTensor",
    "HigherOrderOperator",
    "LazyGraphModule",
    "OpOverload",
    "Parts",
    "PythonReferenceAnalysis",
    "capture_graphs",
    "compile_ahead",
    "compile_cache_dir",
    "compile_options_in",
    "compile_options_of_process",
    "compile_with_inductor",
    "current_backward",
    "donate_nothing",
    "dynamo_counters",
    "fake_propagate",
    "flatten_inputs",
    "foreach_norm",
    "gathered_parameters",
    "get_hash_for_files",
    "global_inductor_option",
    "gloo_between",
    "has_hooks",
    "has_pytree_inputs",
    "has_side_effect",
    "is_compiled_wrapper",
    "is_constant_name",
    "is_ddp_piece",
    "is_inductor_option",
    "is_view_tensor",
    "is_wrapper",
    "keep_output_strides",
    "may_train_more",
    "min_cut_partition",
    "mode_options",
    "placeholder_source",
    "runs_in_ddp",
    "runs_in_join",
    "save_not_recompute",
    "schema_of",
    "set_placeholder_source",
    "stable_topological_sort",
    "static_fake",
    "sympy_interp",
    "take_signature",
    "trace_structured",
    "traced_module",
    "tree_leaves",
    "unwrapped",
    "writes_other_than_python",
]

SET_GRAD_ENABLED: Callable[[bool], None] = torch._C._set_grad_enabled  # what Dynamo writes for torch.no_grad()


@functools.cache
def _inductor_options() -> frozenset[str]:
    # torch.compile checks its own options against this dict; no public function lists the same keys.
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def compile_cache_dir() -> str:
    """Return where torch keeps what it compiles: ``TORCHINDUCTOR_CACHE_DIR`` or a folder for temporary files."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # the rule for the default is nowhere else

    return cache_dir()


def is_inductor_option(name: str) -> bool:
    """Return whether ``name`` is an option of Inductor."""
    return name.replace("-", "_") in _inductor_options()


def mode_options(mode: str | None) -> dict[str, Any]:
    """Return the Inductor options that ``torch.compile(mode=...)`` stands for."""
    from torch._inductor import list_mode_options  # exported by torch._inductor, private by its path only

    return dict(list_mode_options(mode)) if mode else {}


def compile_with_inductor(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config_patches: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a Dynamo graph as the ``inductor`` backend does, under ``config_patches``.

    The patches are handed over, not set around the call: the backward is compiled at the first
    ``.backward()``, long after this returns, and only patches that travel with the graph reach it.
    """
    from torch._inductor.compile_fx import compile_fx  # the body of the registered inductor backend

    return cast(Callable[..., Any], compile_fx(gm, list(example_inputs), config_patches=config_patches))


def placeholder_source(node: fx.Node) -> str | None:
    """Return the Python expression that Dynamo read the placeholder from, if it knows one."""
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        return None
    name = source.name
    return name() if callable(name) else name  # a method up to torch 2.12


def set_placeholder_source(node: fx.Node, like: fx.Node | None) -> None:
    """Give ``node`` the Dynamo source of ``like``, or none; AOTAutograd reads it from every placeholder."""
    node._dynamo_source = getattr(like, "_dynamo_source", None)


def static_fake(tensor: Tensor, beside: Sequence[Any]) -> Tensor:
    """Return ``tensor`` as a fake tensor of fixed shape in the fake mode that is tracing ``beside``.

    A real tensor would be taken for a new input whose size may vary.
    """
    mode = detect_fake_mode(beside)
    return tensor if mode is None else cast(Tensor, mode.from_tensor(tensor, static_shapes=True))


def traced_module(gm: fx.GraphModule) -> nn.Module | None:
    """Return the module that Dynamo is compiling now: whose ``forward`` it is, or which the function calls.

    Dynamo hands a backend the parameters but not the module that owns them.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        frame = InstructionTranslator.current_tx()
    except AttributeError:  # not under Dynamo
        return None
    owner = frame.f_locals.get("self")
    return owner if isinstance(owner, nn.Module) else _owner_in(frame, gm)


def _owner_in(frame: Any, gm: fx.GraphModule) -> nn.Module | None:
    """Return the module in a function's variables that the graph's first trained parameter is read from."""
    trained = (node for node in gm.graph.find_nodes(op="placeholder") if _is_trained(node))
    source = next(filter(None, map(placeholder_source, trained)), None)
    if source is None:
        return None
    module = re.split(r"\._modules\[|\._parameters\[", source, maxsplit=1)[0]
    try:
        # Dynamo's guards read their values by evaluating the same expression over the same two dicts.
        owner = eval(module, {"L": frame.f_locals, "G": frame.f_globals})
    except Exception:
        return None  # a source that only Dynamo's own helpers can read
    return owner if isinstance(owner, nn.Module) else None


def _is_trained(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, nn.Parameter) and value.requires_grad


def gathered_parameters(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for what ``fully_shard`` has made of a model, each whole parameter that it computes with and its shard."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # nothing is sharded where nobody has imported it
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            state = module._get_fsdp_state()
            # One group up to torch 2.12.
            groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
            for sharded in (sharded for group in groups if group is not None for sharded in group.fsdp_params):
                if hasattr(sharded, "_unsharded_param"):  # from its first forward on
                    yield sharded._unsharded_param, sharded.sharded_param


def gloo_between(members: Sequence[int]) -> Any:
    """Return a gloo backend between some ranks of the default group, of which each has to call this.

    ``new_group`` with local synchronization finds the others by a name that is made of the number of groups a rank
    belongs to: where ranks belong to different numbers of them, they would wait for each other for ever.
    """
    from torch.distributed.distributed_c10d import _get_default_store  # where the processes of a run find each other

    store = torch.distributed.PrefixStore(f"skiplora/{'_'.join(map(str, members))}", _get_default_store())
    own = list(members).index(torch.distributed.get_rank())
    return torch.distributed.ProcessGroupGloo(store, own, len(members), torch.distributed.default_pg_timeout)


def runs_in_ddp() -> bool:
    """Return whether the forward of a DistributedDataParallel is running."""
    return nn.parallel.DistributedDataParallel._get_active_ddp_module() is not None  # Dynamo asks the same


def runs_in_join() -> bool:
    """Return whether the forward of a DistributedDataParallel is running inside its ``join()``."""
    wrapper: Any = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    return wrapper is not None and wrapper._join_config.enable  # what join() sets; nothing public tells


def may_train_more(node: torch.autograd.graph.Node) -> bool:
    """Return whether a gradient that reaches an autograd node may train what none of the node's edges leads to.

    So it is with a reentrant checkpoint, and may be with any Function written in Python but those of torch that show
    all that they were given: AOTAutograd's, those of operators in a library, and ``fully_shard``'s.
    """
    function = getattr(type(node), "_forward_cls", None)  # nothing public leads from a node to its Function
    return function is not None and not function.__module__.startswith(
        ("torch._functorch.", "torch._library.", "torch.distributed.fsdp.")
    )


def is_ddp_piece(example_inputs: Sequence[Any]) -> bool:
    """Return whether a graph that a backend is given with these inputs is one that DDPOptimizer has cut from another.

    It knows the inputs of the pieces as fake tensors only; whole graphs come with real ones.
    """
    return runs_in_ddp() and any(isinstance(value, FakeTensor) for value in example_inputs)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside what only wraps it, or ``model`` itself."""
    while is_wrapper(model):
        model = cast(nn.Module, model._orig_mod if is_compiled_wrapper(model) else model.module)
    return model


def is_wrapper(model: nn.Module) -> bool:
    """Return whether ``model`` wraps another and is none itself: ``torch.compile(module)``, and data parallelism."""
    return is_compiled_wrapper(model) or isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))


def is_compiled_wrapper(model: object) -> bool:
    """Return whether ``model`` is the wrapper that ``torch.compile(module)`` returns."""
    from torch._dynamo import OptimizedModule

    return isinstance(model, OptimizedModule)


def compile_options_in(model: nn.Module, backend: str) -> list[Mapping[str, Any]]:
    """Return the options under which parts of ``model`` are compiled by a backend, be it that none has run yet.

    What a function around them is compiled with cannot be seen from them.
    """
    found = (_compiler_of(module) for module in model.modules())
    return [options for compiler in found if (options := _options_for(backend, compiler)) is not None]


def compile_options_of_process(backend: str) -> list[Mapping[str, Any]]:
    """Return the options of all that was given to ``torch.compile`` for a backend since Dynamo was last reset."""
    from torch._dynamo.eval_frame import cached_backends  # filled when torch.compile is called, before any forward

    found = (_options_for(backend, compiler) for compiler in list(cached_backends.values()))
    return [options for options in found if options is not None]


def _compiler_of(module: nn.Module) -> Any:
    """Return what Dynamo is to hand a module's graphs to, inside its own wrappers; None if there is no such thing."""
    if is_compiled_wrapper(module):
        found: Any = getattr(module.dynamo_ctx, "callback", None)
    else:
        # Module.compile keeps the function that torch.compile made, and that what it calls, in its closure alone.
        function = module.__dict__.get("_compiled_call_impl")
        cells = dict(zip(_free_names(function), getattr(function, "__closure__", None) or (), strict=True))
        found = cells["callback"].cell_contents if "callback" in cells else None
    while hasattr(found, "_torchdynamo_orig_backend"):
        found = found._torchdynamo_orig_backend
    return found


def _free_names(function: Any) -> tuple[str, ...]:
    return function.__code__.co_freevars if hasattr(function, "__code__") else ()


def _options_for(backend: str, compiler: Any) -> Mapping[str, Any] | None:
    """Return the options that ``torch.compile`` keeps for a backend of this name; None if it is another."""
    if getattr(getattr(compiler, "compiler_fn", None), "__name__", None) != backend:
        return None
    return cast(Mapping[str, Any], compiler.kwargs.get("options") or {})


def save_not_recompute(node: fx.Node) -> None:
    """Have the partitioner save ``node`` for the backward, also inside a checkpointed region."""
    node.meta["recompute"] = torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE


def keep_output_strides(output: fx.Node) -> None:
    """Have Inductor give each result of a function the strides that it was traced with, as it does for a user's.

    It notes the two itself before the passes after autograd run, so that a function which one of them makes has none.
    """
    values = [node.meta["val"] for node in cast(Sequence[fx.Node], output.args[0])]
    output.meta["user_visible_output_idxs"] = list(range(len(values)))
    output.meta["original_output_strides"] = [value.stride() for value in values]


def donate_nothing() -> None:
    """Have the backward of the graph that is being compiled overwrite none of its inputs.

    AOTAutograd tells Inductor by position which inputs of a backward nobody else reads. Inductor takes those positions
    for those of every subgraph's inputs as well, and a branch then overwrites what is still to be read: gradients are
    wrong, without a word (pytorch#192840). To be dropped when no supported torch does so. Before a backward with
    ``retain_graph=True`` AOTAutograd looks at the same list, and refuses if there is anything in it.
    """
    context = TracingContext.try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []


def global_inductor_option(name: str) -> Any:
    """Return the value of an Inductor option that is set for the whole process."""
    from torch._inductor import config

    return getattr(config, name)


def writes_other_than_python(inductor: Mapping[str, Any]) -> bool:
    """Return whether Inductor, under these options, writes its outer code in a form that has no functions."""
    names = ("cpp_wrapper", "fx_wrapper")
    return any(inductor.get(name, global_inductor_option(name)) for name in names if is_inductor_option(name))


def current_backward() -> int:
    """Return the number of the backward that is running in this thread, or -1 if none is."""
    return torch._C._current_graph_task_id()  # torch.utils.checkpoint tells a recompute by it; nothing public does


def foreach_norm(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the L2 norm of each tensor, 0-d, with as few kernels as torch's own gradient clipping launches."""
    return list(torch._foreach_norm(list(tensors)))  # get_total_norm, the public function over it, gives only their sum


def fake_propagate(gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Run a graph on fake tensors, and leave each node's in ``meta["val"]``; nothing is computed."""
    with torch.no_grad():
        arguments = gm.graph.process_inputs(*inputs) if has_pytree_inputs(gm) else inputs
        _FakeRun(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*arguments)


class _FakeRun(FakeTensorProp):
    """Takes what a graph of ``forward(*args, **kwargs)`` is given by position: no keywords."""

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return {} if str(target).startswith("**") else super().placeholder(target, args, kwargs)


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    """Return an operator's name, arguments and results, and which of them share memory; its text is public only."""
    return operator._schema


def is_view_tensor(tensor: Tensor) -> bool:
    """Return whether autograd knows ``tensor`` as a view of another."""
    return tensor._is_view()  # no public name tells; a write into such a one has another meaning to autograd


def take_signature(graph: fx.Graph, like: fx.Graph) -> None:
    """Have the module of ``graph`` called as that of ``like`` is: what torch.export traces takes and gives pytrees."""
    graph._codegen = like._codegen  # set_codegen is public, to read it is not


def has_pytree_inputs(gm: fx.GraphModule) -> bool:
    """Return whether a graph flattens its arguments before its placeholders take them."""
    return hasattr(gm.graph._codegen, "pytree_info")


def flatten_inputs(inputs: Sequence[Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Return each leaf of ``inputs`` with its path, whose first part is the argument's position."""
    leaves, _ = pytree.tree_flatten_with_path(tuple(inputs))
    return [(tuple(_key_name(key) for key in path), leaf) for path, leaf in leaves]


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def has_hooks(module: nn.Module) -> bool:
    """Return whether anything is called beside the module's ``forward`` when it is called."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def is_constant_name(name: str) -> bool:
    """Return whether a tracer, which did not know what a tensor is called, has given it this name."""
    return re.search(r"(^|\.)(_(param|tensor)_constant|lifted_tensor_)\d+$", name) is not None


def capture_graphs(
    model: nn.Module,
    backend: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_break: Callable[[str, str], None],
) -> None:
    """Call ``model`` once under Dynamo with ``backend``, also if it has been compiled in place with another.

    Dynamo's caches are left as they are found. Only where the user has compiled the same code, torch up to 2.12 keeps
    one entry more of it: from 2.13 on the call has entries of its own (``isolate_recompiles``).

    Args:
        model, args, kwargs: what is called.
        backend: as of ``torch.compile``.
        on_break: called, once it has run, with the message and the place in the source of each graph break.
    """
    watch = _BreakWatch()
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    options: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    compiled_in_place, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        # The cap on the entries of all isolated regions together is for a process; this one call has its own limit.
        with _code_caches_kept(), watch, _unlimited_total():
            torch.compile(model, backend=watch.around(backend), dynamic=False, **options)(*args, **kwargs)
    finally:
        model._compiled_call_impl = compiled_in_place
    for message, place in watch.told:
        on_break(message, place)


def _unlimited_total() -> contextlib.AbstractContextManager[Any]:
    from torch._dynamo import config

    return cast(contextlib.AbstractContextManager[Any], config.patch(accumulated_recompile_limit=sys.maxsize))


@contextlib.contextmanager
def _code_caches_kept() -> Iterator[None]:
    """Forget what Dynamo compiles meanwhile of code that it had compiled nothing of before."""
    from torch._dynamo.convert_frame import input_codes  # each code that Dynamo has looked at
    from torch._dynamo.eval_frame import reset_code

    before = {code: _entries(code) for known in input_codes.seen if (code := known()) is not None}
    try:
        yield
    finally:
        for known in input_codes.seen:
            code = known()
            if code is not None and (code not in before or _entries(code) > before[code] == 0):
                reset_code(code)


def _entries(code: CodeType) -> int:
    from torch._C._dynamo import eval_frame

    total = getattr(eval_frame, "_get_total_cache_entry_count", None)  # from torch 2.13 on, where entries have regions
    return int(total(code)) if total else len(eval_frame._debug_get_cache_entry_list(code))


class _BreakWatch:
    """Collects, while it is entered, why and where Dynamo stops or leaves out a frame.

    Dynamo counts attempts and not breaks, and says some things in two records: one for each compile of a frame, with
    its failure, and one for each graph that it ended early. A place in the source is told once.

    Attributes:
        told: message and place of each break.
    """

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._elsewhere: dict[str, None] = {}

    @property
    def told(self) -> list[tuple[str, str]]:
        known = {message.splitlines()[0] for message in self._places.values()}
        rest = [(message, "") for message in self._elsewhere if message.splitlines()[0] not in known]
        return [(message, place) for place, message in self._places.items()] + rest

    def around(self, backend: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``backend``, called between two looks: Dynamo keeps few of its records."""

        def watched(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            self._look()
            return backend(gm, inputs)

        return watched

    def __enter__(self) -> None:
        from torch._dynamo.utils import get_compilation_metrics, graph_break_reasons

        self._compiles = list(get_compilation_metrics())
        self._ended = len(graph_break_reasons)
        self._unsupported = Counter(dynamo_counters["unimplemented"])

    def __exit__(self, *raised: object) -> None:
        self._look()

    def _look(self) -> None:
        from torch._dynamo.utils import get_compilation_metrics, graph_break_reasons

        known = set(map(id, self._compiles))
        for compiled in get_compilation_metrics():
            if id(compiled) not in known:
                self._note_failure(compiled)
        for ended in graph_break_reasons[self._ended :]:
            self._note_end(ended)
        self.__enter__()

    def _note_failure(self, compiled: Any) -> None:
        # What a comprehension or a generator does is only looked at by itself once the frame around it has been left.
        if compiled.fail_type != "Unsupported" or compiled.co_name.startswith("<"):
            return
        here = (compiled.fail_user_frame_filename, compiled.fail_user_frame_lineno)
        file, line = here if here[0] else (compiled.co_filename, compiled.co_firstlineno)
        self._places.setdefault(f"{file}:{line}", str(compiled.fail_reason).strip())

    def _note_end(self, ended: Any) -> None:
        message = str(ended.reason).strip()
        if message == "step_unsupported":  # the cause is only counted; its place is not known
            since = Counter(dynamo_counters["unimplemented"]) - self._unsupported
            self._elsewhere[next(reversed(since), message)] = None
            return
        if message.startswith("generic_jump"):
            message = "Data-dependent branching\n  Explanation: Python decides by the value of a tensor."
        self._places.setdefault(_user_place(ended.user_stack), message)


def _user_place(stack: Sequence[Any]) -> str:
    """Return the innermost line of a stack outside torch, as ``file:line``."""
    own = str(Path(torch.__file__).parent)
    frames = [frame for frame in stack if not frame.filename.startswith(own)] or list(stack)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def min_cut_partition(
    joint: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return forward and backward of a joint graph as Inductor cuts it where no other partitioner is given."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition  # functorch.compile has no types

    return cast(
        tuple[fx.GraphModule, fx.GraphModule], min_cut_rematerialization_partition(joint, joint_inputs, **kwargs)
    )


class Parts(NamedTuple):
    """A joint graph, partitioned."""

    forward: fx.Graph
    backward: fx.Graph


def compile_ahead(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    on_partition: Callable[[fx.Graph, Callable[[], Parts]], None],
) -> Callable[..., Any]:
    """Trace a Dynamo graph as Inductor does, as far as the partitioned backward; generate no code.

    Args:
        gm: a forward.
        inputs: what it was captured with.
        on_partition: called with the joint graph, and a function that partitions it.

    Returns:
        The forward, run operator by operator.
    """
    from torch._dynamo.backends.common import aot_autograd  # the one entry that takes a partitioner
    from torch._functorch.aot_autograd import make_boxed_func  # functorch.compile, which exports both, has no types
    from torch._inductor.decomposition import select_decomp_table  # which operators Inductor takes apart

    def partition(joint: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> Any:
        parts: list[Any] = []

        def cut() -> Parts:
            joint.recompile()
            parts.extend(min_cut_partition(joint, joint_inputs, compiler="inductor", **kwargs))
            return Parts(parts[0].graph, parts[1].graph)

        on_partition(joint.graph, cut)
        return tuple(parts)

    def run_as_it_is(graph: fx.GraphModule, graph_inputs: Sequence[Any]) -> Callable[..., Any]:
        return cast(Callable[..., Any], make_boxed_func(graph.forward))

    backend = aot_autograd(
        fw_compiler=run_as_it_is,
        partition_fn=partition,
        decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
    )
    return cast(Callable[..., Any], backend(gm, list(inputs)))
