"""Which tensors are the optimizer's: slots of a parameter, its scalars, the step.

TensorFlow 1 has names alone: Adam's slots of ``X`` are ``X/Adam`` and ``X/Adam_1`` (under a scope, ``scope/X/Adam``),
BERT's ``X/adam_m``; mesh-tensorflow's Adafactor has ``X_slot_v``, or ``X_slot_vr`` and ``X_slot_vc``, and
tensor2tensor's ``X/Adafactor`` and ``X/Adafactor_1``.

TensorFlow 2 has paths of attributes that end in ``/.ATTRIBUTES/VARIABLE_VALUE``; slots are
``X/.OPTIMIZER_SLOT/<optimizer>/<slot>``, and since Keras 2.11 numbered variables of the optimizer, told apart by the
names in the object graph.

A slot has the shape of its parameter or, where it is factored, one axis less; what has not, is not a slot.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import field

from warmstart.formats.checkpoint import SlotEntry
from warmstart.formats.tensorflow.index import OPAQUE, Tensor
from warmstart.formats.tensorflow.protobuf import fields, message
from warmstart.lean import dataclass

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SLOT = "/.OPTIMIZER_SLOT/"
_ADAM = re.compile(r"(?:Lazy|N)?Adam(?:W|Max|Weight.*|Optimizer|Async)?(_1)?|(?:LAMB|Lamb)(_1)?|(?:adam|lamb)_([mv])")
_OTHERS = re.compile(r"(?:Momentum|RMSProp|Adagrad|AdagradDA|ProximalAdagrad|Adadelta|Ftrl)(?:_[12])?")
_ADAFACTOR = re.compile(r"Adafactor(?:_[12])?")
_MESH = re.compile(r"(.+)_slot_(m|v|vr|vc)")
_SCALARS = re.compile(r"(?:.+/)?(?:beta[12]_power(?:_\d+)?|learning_rate|current_loss_scale|good_steps)")
_STEPS = ("global_step", "global_step" + VALUE, "step" + VALUE)
_COUNTERS = re.compile(r"(.+)/(?:iter|_iterations)" + re.escape(VALUE))
_MOMENTS = {"momentum": "m", "velocity": "v"}
_LIKE_ADAM = ("adam", "nadam", "lamb")


Slots = dict[tuple[str, str], tuple[SlotEntry, str]]


@dataclass
class Roles:
    """What the names say, by tensor name.

    ``step`` are scalars that count updates: the one that is called so, or else every optimizer's. ``scalars`` are the
    optimizer's, by the name that they have there; ``slots`` are by (parameter, slot), with the tensor that holds them.
    """

    step: list[str] = field(default_factory=list)
    scalars: dict[str, str] = field(default_factory=dict)
    slots: Slots = field(default_factory=dict)


def full_names(graph: bytes) -> dict[str, str]:
    """Tensor name → the variable's own name, from a TrackableObjectGraph.

    Definition: TensorFlow, core/protobuf/trackable_object_graph.proto.

    Raises:
        Malformed: it is not one.
    """
    names: dict[str, str] = {}
    for tag, node in fields(graph):
        for kind, attribute in fields(message(node)) if tag == 1 else ():
            if kind == 2:
                texts = {tag: message(value) for tag, value in fields(message(attribute)) if tag in (2, 3)}
                if texts.get(2) and texts.get(3):
                    names[texts[3].decode("utf-8", "replace")] = texts[2].decode("utf-8", "replace")
    return names


def roles(tensors: Mapping[str, Tensor], variables: Mapping[str, str], readable: Container[str]) -> Roles:
    """The roles of ``tensors``. ``variables`` are the names that the object graph gives them, if there is one;
    scalars that are not ``readable`` stay what they are."""
    numeric = {name: tensor for name, tensor in tensors.items() if tensor.dtype not in OPAQUE}
    scalars = {
        name: tensor
        for name, tensor in numeric.items()
        if not tensor.shape and name in readable and not tensor.dtype.startswith("complex")
    }
    counts = [name for name, tensor in scalars.items() if tensor.dtype in ("int64", "int32", "uint64", "uint32")]
    counters = {name: match[1] + "/" for name in counts if (match := _COUNTERS.fullmatch(name))}
    step = [name for name in _STEPS if name in counts][:1]
    found = Roles(step or list(counters))
    for name in scalars:
        if name not in step and _is_scalar_of(name, counters.values()):
            found.scalars[name.removesuffix(VALUE)] = name
    taken = {*step, *found.scalars.values()}
    free = {name: tensor for name, tensor in numeric.items() if name not in taken}
    found.slots = {**_by_name(free), **_by_path(free), **_by_variable(free, variables)}
    return found


def _is_scalar_of(name: str, optimizers: Collection[str]) -> bool:
    if _SLOT in name or "_variables/" in name:
        return False
    return bool(_SCALARS.fullmatch(name.removesuffix(VALUE))) or any(name.startswith(path) for path in optimizers)


def _same(parameter: Tensor | None, tensor: Tensor, slot: str) -> Slots:
    """``tensor`` as the slot of ``parameter``, if that exists and has its shape."""
    if parameter is None or parameter is tensor or parameter.shape != tensor.shape:
        return {}
    entry = SlotEntry(parameter.name, slot, tensor.shape, tensor.numbers)
    return {(parameter.name, slot): (entry, tensor.name)}


def _by_name(tensors: Mapping[str, Tensor]) -> Slots:
    """Slots by the names of TensorFlow 1."""
    slots: Slots = {}
    factored: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition("/")
        adam = _ADAM.fullmatch(last)
        mesh = _MESH.fullmatch(name)
        if owner and adam:
            slot = adam[3] or ("v" if adam[1] or adam[2] else "m")
            slots |= _same(_within_scopes(tensors, owner), tensor, slot)
        elif owner and _OTHERS.fullmatch(last):
            slots |= _same(_within_scopes(tensors, owner), tensor, last)
        elif owner and _ADAFACTOR.fullmatch(last):
            factored[owner].append(tensor)  # in the order of their numbers
        elif mesh:
            parameter = tensors.get(mesh[1])
            slots |= _factor(parameter, tensor, mesh[2]) if len(mesh[2]) == 2 else _same(parameter, tensor, mesh[2])
    for owner, states in factored.items():
        slots |= _adafactor(_within_scopes(tensors, owner), states)
    return slots


def _within_scopes(tensors: Mapping[str, Tensor], owner: str) -> Tensor | None:
    """The parameter called ``owner``, or what is left of that name without the scopes of the optimizer before it."""
    while owner and owner not in tensors:
        owner = owner.partition("/")[2]
    return tensors.get(owner)


def _factor(parameter: Tensor | None, tensor: Tensor, slot: str) -> Slots:
    """A factor of mesh-tensorflow's Adafactor: ``vr`` is a mean over the largest axis, ``vc`` over the second largest.

    Source: mesh_tensorflow/optimize.py, AdafactorOptimizer; of axes of one length the first counts as the larger.
    """
    if parameter is None or len(parameter.shape) < 2:
        return {}
    axes = sorted(range(len(parameter.shape)), key=lambda axis: -parameter.shape[axis])
    return _mean(parameter, tensor, "v_row", axes[0]) if slot == "vr" else _mean(parameter, tensor, "v_col", axes[1])


def _mean(parameter: Tensor, tensor: Tensor, slot: str, axis: int) -> Slots:
    """``tensor`` as a mean over ``axis`` of ``parameter``, if it has that shape."""
    if tensor.shape != parameter.shape[:axis] + parameter.shape[axis + 1 :]:
        return {}
    entry = SlotEntry(parameter.name, slot, tensor.shape, tensor.numbers, axis)
    return {(parameter.name, slot): (entry, tensor.name)}


def _adafactor(parameter: Tensor | None, states: Sequence[Tensor]) -> Slots:
    """The states of tensor2tensor's Adafactor, in the order in which it makes them: ``m`` if it has momentum; then
    ``v``, or of a matrix the means over columns and over rows.

    Source: tensor2tensor/utils/adafactor.py.
    """
    if parameter is None or len(states) > 3:
        return {}
    slots: Slots = {}
    if len(states) < 3 and all(state.shape == parameter.shape for state in states):
        for state, slot in zip(states[::-1], "vm", strict=False):
            slots |= _same(parameter, state, slot)
    elif len(parameter.shape) == 2 and len(states) > 1:
        slots |= _mean(parameter, states[-2], "v_row", 1) | _mean(parameter, states[-1], "v_col", 0)
        if len(states) == 3:
            slots |= _same(parameter, states[0], "m")
    return slots if len(slots) == len(states) else {}


def _by_path(tensors: Mapping[str, Tensor]) -> Slots:
    """Slots by the paths of TensorFlow 2: ``X/.OPTIMIZER_SLOT/<optimizer>/<slot>``."""
    claims: dict[str, list[tuple[str, str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors.items():
        owner, mark, rest = name.removesuffix(VALUE).rpartition(_SLOT)
        optimizer, _, slot = rest.rpartition("/")
        if mark and optimizer and slot and name.endswith(VALUE):
            claims[owner + VALUE].append((optimizer, slot, tensor))
    slots: Slots = {}
    for parameter, found in claims.items():
        several = len({optimizer for optimizer, _, _ in found}) > 1
        for optimizer, slot, tensor in found:
            slots |= _same(tensors.get(parameter), tensor, f"{optimizer}/{slot}" if several else slot)
    return slots


def _by_variable(tensors: Mapping[str, Tensor], variables: Mapping[str, str]) -> Slots:
    """Slots by the variables' own names: Keras 2.11 has ``Adam/m/X``, Keras 3 ``adam/X_momentum`` with _ for /."""
    owners: dict[str, list[Tensor]] = defaultdict(list)
    state = []
    for name, tensor in tensors.items():
        if "/_variables/" in name:
            state.append(tensor)
        elif variables.get(name):
            for known in {variables[name], variables[name].replace("/", "_")}:
                owners[known].append(tensor)
    slots: Slots = {}
    for tensor in state:
        optimizer, _, rest = variables.get(tensor.name, "").partition("/")
        slot, _, parameter = rest.partition("/")
        if not parameter:
            ends = [place for place in range(len(rest), 0, -1) if rest[place - 1] == "_"]
            parameter = next((rest[: end - 1] for end in ends if rest[: end - 1] in owners), "")
            slot = rest[len(parameter) + 1 :]
            if optimizer.startswith(_LIKE_ADAM):
                slot = _MOMENTS.get(slot, slot)
        if len(owners.get(parameter, ())) == 1:
            slots |= _same(owners[parameter][0], tensor, slot)
    return slots
