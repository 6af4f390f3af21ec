"""The processes that train together, and what they divide among them: torchrun starts them, FSDP2 does the rest.

    torchrun --nproc-per-node 8 -m vistune train RECIPE ...

Every process takes the same steps, each on its own part of the step's rows. Which rows these are and what the loss is does not depend on
how many processes there are. What learns is divided: each process holds, updates and saves its shard of the weights and of the optimizer's
moments. What is frozen each process holds whole, or it is divided as well (`parallel.shard=all`).
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from vistune.errors import UsageError, VistuneError, WorkerError
from vistune.model.llava import Llava
from vistune.train.config import TrainConfig
from vistune.train.parts import part_of

Result = TypeVar("Result")

_PATIENCE = timedelta(hours=24)
"""For what the first process does while the others wait: checking a million pictures, digesting a large checkpoint. If it dies they know at
once, for its connections close; `parallel.timeout` is for the steps, in which all have the same to do."""


@dataclass(frozen=True)
class World:
    """This process among those that share the run."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """For words, on the CPU; None for a process alone."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what is written once: metrics, samples, the model."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes. The tensor itself is left as it is."""
        if self.group is None:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether any process says so: what one decides by its own clock, memory or signals, all have to do alike."""
        return bool(self.sum(torch.tensor(float(flag))))

    def on_main(self, act: Callable[[], Result]) -> Result:
        """What `act` returns or raises in the first process, in all of them; only the first calls it."""
        if self.group is None:
            return act()
        outcome: list[Any] = [None, None]
        raised: Exception | None = None
        if self.main:
            try:
                outcome[0] = act()
            except Exception as error:
                raised = error
                if isinstance(error, OSError):
                    outcome[1] = (type(error), (error.errno, error.strerror, error.filename))
                else:
                    outcome[1] = (type(error) if isinstance(error, VistuneError) else WorkerError, (str(error) or type(error).__name__,))
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if raised is not None:
            raise raised
        if outcome[1] is not None:
            kind, words = outcome[1]
            raise kind.__new__(kind, *words)  # not called: some errors of ours write their message themselves
        return cast(Result, outcome[0])

    def agree(self, words: Mapping[str, str]) -> None:
        """Raises UsageError, in all processes, if these words are not the same in all of them, or their random numbers are not."""
        if self.group is None:
            return
        own = {**words, "random numbers": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()}
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own, group=self.group)
        differing = sorted({name for other in found for name in found[0].keys() | other.keys() if other.get(name) != found[0].get(name)})
        if differing:
            raise UsageError(
                f"The {self.size} processes of this run differ in: {', '.join(differing)}. Start all of them with the same command, on "
                "machines with the same files."
            )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs a block in the first process and then in the others, which find on disk what it left. Its error is one for all."""
        if not self.main:
            self.on_main(lambda: None)
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        self.on_main(partial(_raise, failed))


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


@contextmanager
def start_world(config: TrainConfig) -> Iterator[World]:
    """Joins the processes that torchrun started, until the block ends; a process that was started alone stays alone.

    Raises:
        UsageError: the processes do not fit the config or this machine; every process of the machine says so.
        WorkerError: while the block ran, another process died, or was silent for `parallel.timeout` seconds.
    """
    joined = dist.is_initialized()
    size = dist.get_world_size() if joined else int(os.environ.get("WORLD_SIZE", "1"))
    _check(config, size)
    if size == 1:
        yield World(0, 1, _device(config.device, 0))
        return
    try:
        rank = dist.get_rank() if joined else int(os.environ["RANK"])
        local_rank = int(os.environ.get("LOCAL_RANK", "0") if joined else os.environ["LOCAL_RANK"])
    except KeyError as error:
        raise UsageError(f"WORLD_SIZE is set to {size}, but {error} is not: several processes are started by torchrun.") from None
    device = _device(config.device, local_rank)
    if not joined:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=config.parallel.timeout)
        dist.init_process_group(backend, store=store_of_this_start(timeout), rank=rank, world_size=size, timeout=timeout)
    # Broken connections are not waited for when this process is about to end by an error.
    ended_well = False
    try:
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))
        yield World(rank, size, device, group)
        ended_well = True
    except RuntimeError as error:
        if not _tells_of_others(error):
            raise
        raise WorkerError(
            f"Another process of this run ended, or was silent for parallel.timeout={config.parallel.timeout:g} seconds; its own messages "
            f"say why. The run goes on from its last checkpoint (--resume) with any number of processes. ({str(error).splitlines()[0]})"
        ) from error
    finally:
        if not joined and (ended_well or device.type == "cpu"):
            dist.destroy_process_group()


def store_of_this_start(timeout: timedelta) -> Store:
    """Where the processes find each other, apart from what those that torchrun started before a restart have left there.

    torchrun lends its own store, and the same one after each restart: processes would go by addresses of dead ones (pytorch #135712). Its
    count of restarts is the same for all processes of one machine only, so several machines are told to have a new store each time.

    Raises UsageError for several machines that restart and share the store.
    """
    lent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    machines = int(os.environ["WORLD_SIZE"]) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if lent and machines > 1 and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UsageError(
            "After a restart on several machines, torchrun's processes would look for dead ones (pytorch #135712). Set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each machine, or leave --max-restarts out and start it again yourself."
        )
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(f"start_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if lent else store


def _tells_of_others(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("gloo", "nccl", "closed by peer", "reset by peer", "timed out waiting")
    )


def _check(config: TrainConfig, size: int) -> None:
    """Refuses, in all processes alike and before they wait for each other, what could not work or would be in vain."""
    replicas = config.parallel.replicas
    if replicas < 1 or size % replicas:
        raise UsageError(
            f"parallel.replicas={replicas} does not divide the {size} processes of this run into groups of one size. Set it to the number "
            "of nodes, or to 1."
        )
    if size > config.batch.conversations:
        raise UsageError(
            f"{size} processes share steps of batch.conversations={config.batch.conversations}, so some would have nothing to do. Start "
            "fewer processes, or make the batch larger (which makes it another run)."
        )
    if config.parallel.timeout <= 0:
        raise UsageError(f"parallel.timeout={config.parallel.timeout:g} leaves no time to wait in; 600 seconds are the default.")
    if size > 1 and config.objective == "align" and config.trainable != ("projector",):
        raise UsageError(
            f"The align objective runs on several processes only if the projector alone learns, not {', '.join(config.trainable)}. Set "
            "trainable=projector, or start one process."
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size > 1 and _device(config.device, 0).type == "cuda" and here > torch.cuda.device_count():
        raise UsageError(
            f"torchrun started {here} processes on this machine, which has {torch.cuda.device_count()} GPUs. Give it --nproc-per-node "
            f"{torch.cuda.device_count()}, or set device=cpu."
        )


def _device(choice: str, local_rank: int) -> torch.device:
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


# --- Dividing a model ------------------------------------------------------------------------------------------------------------------


def waiting_to_be_divided(model: Llava, config: TrainConfig, world: World) -> set[nn.Parameter]:
    """The language model's own weights, where each process will hold a shard of them only.

    They stay as they were loaded, on the CPU and in the file's format, until `parallelize` takes them layer by layer: a 13B model's
    masters in fp32, whole on every GPU before there are any shards, would take 52 GB of each.
    """
    if world.group is None or config.objective == "align":
        return set()
    parameters = model.named_parameters()
    return {each for name, each in parameters if part_of(name) == "language_model" and not _is_held_whole(name, each, config)}


def move_whole(model: Llava, waiting: set[nn.Parameter], device: torch.device) -> None:
    """Moves all to `device` but what is `waiting_to_be_divided`."""
    if not waiting:
        model.to(device)  # of quantised weights more moves than their data
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor not in waiting:
            tensor.data = tensor.data.to(device)


def parallelize(model: Llava, config: TrainConfig, world: World) -> Llava:
    """Divides the weights of `model` among the processes, in place; it is then run by `loss` alone (for align: by its projector).

    Every decoder layer is gathered when its turn comes and let go of afterwards. All else is gathered once a forward: the last layer too,
    because its parts are run one by one (`ragged.pruned_layer`), and the head, whose weight the loss reads.

    Where the forward is in bf16 a layer's matrices are cast before they are gathered: half the traffic, and to the bit what autocast would
    make of them, whose copies of all layers would be held until the backward pass has used them.

    Returns a model of the same weights for what needs them in one piece, `gathered` fills it: it shares what is not divided, and is empty
    of what is. A process alone gets `model` itself back.
    """
    if world.group is None:
        return model
    whole = _twin(model)
    mesh = _mesh(config.parallel.replicas, world)
    held = {parameter for name, parameter in model.named_parameters() if _is_held_whole(name, parameter, config)}

    in_bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def divide(module: nn.Module, policy: MixedPrecisionPolicy | None = None) -> None:
        own = [parameter for parameter in module.parameters() if parameter not in held and not isinstance(parameter, DTensor)]
        for parameter in own:
            whole_here = parameter.data.to(world.device)
            parameter.data = whole_here.float() if parameter.requires_grad else whole_here
        fully_shard(module, mesh=mesh, ignored_params=held, mp_policy=policy or MixedPrecisionPolicy())
        for parameter in own:
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    if config.objective == "align":
        # It warns of what would be done in place to the projector's output; the objective does nothing so.
        warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
        divide(model.multi_modal_projector)
        for entrance in ("read", "content"):
            if hasattr(model.multi_modal_projector, entrance):
                register_fsdp_forward_method(model.multi_modal_projector, entrance)
    else:
        for layer in model.causal_lm.model.layers[:-1]:
            if not held.issuperset(layer.parameters()):
                for norm in _norms(layer, held):
                    divide(norm)  # apart, as they stay in fp32
                divide(layer, in_bf16 if config.precision == "bf16" else None)
        divide(model)
        register_fsdp_forward_method(model, "loss")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss of each process is already divided by what all of them count, so gradients are summed and not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return whole


def _norms(layer: nn.Module, held: set[nn.Parameter]) -> list[nn.Module]:
    """A layer's modules with weights of their own that learn and are no matrices."""
    found = [each for each in layer.modules() if not isinstance(each, nn.Linear)]
    return [each for each in found if any(weight.requires_grad and weight not in held for weight in each.parameters(recurse=False))]


def _is_held_whole(name: str, parameter: nn.Parameter, config: TrainConfig) -> bool:
    """A frozen tower and projector always are: they are small, and the tower is also run outside of the loss, when features are cached."""
    return not parameter.requires_grad and (config.parallel.shard == "trained" or not name.startswith("language_model."))


def _mesh(replicas: int, world: World) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh(world.device.type, (world.size,))
    return init_device_mesh(world.device.type, (replicas, world.size // replicas), mesh_dim_names=("replicas", "shards"))


def _twin(model: Llava) -> Llava:
    """A second set of modules over the same tensors, run as they are: without compilation or checkpointing of activations."""
    tensors = (*model.parameters(), *model.buffers())
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in twin.modules():
        module.__dict__.pop("forward", None)  # what was put there runs the modules of the first set
    return twin


def let_go(model: nn.Module) -> None:
    """Has each process hold its shards only, as after a backward pass: after a forward alone the root still has its weights whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered(model: Llava, whole: Llava, world: World, device: torch.device) -> Iterator[None]:
    """Fills `whole` with the divided weights of `model`, on `device`, while the block runs, in the first process; the others help.

    One weight is gathered at a time, so a GPU never needs room for more than one beside what it holds.
    """
    places = dict(whole.named_parameters())
    filled: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            full = cast(DTensor, parameter.detach()).full_tensor()
            if world.main:
                places[name].data = full.to(device)
                filled.append(places[name])
    try:
        yield
    finally:
        for parameter in filled:
            parameter.data = torch.empty(0, dtype=parameter.dtype)
