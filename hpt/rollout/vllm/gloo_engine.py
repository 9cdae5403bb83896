"""vLLM's weight transfer over gloo, for CPUs: the server's side. vLLM loads this module in its worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from hpt.rollout.vllm.gloo_group import GlooGroup, address_towards, store_at


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the trainer's store is, how many processes join, and how many seconds each step of a transfer may take."""

    address: str
    port: int
    world_size: int
    timeout: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors that follow, one broadcast each, in this order; dtypes by their names in torch."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives weights under checkpoint names and loads them as vLLM loads a checkpoint, layer by layer."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        size, timeout = init_info.world_size, init_info.timeout
        store = store_at(init_info.address, init_info.port, size, timeout)
        own_address = address_towards(init_info.address, init_info.port)
        self._group = GlooGroup(store, rank, size, own_address, timeout)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        if self._group is None:
            raise RuntimeError("init_weight_transfer_engine comes first")
        descriptions = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        try:
            for name, dtype_name, shape in descriptions:
                weight = torch.empty(shape, dtype=getattr(torch, dtype_name))
                self._group.broadcast(weight)
                self.model.load_weights([(name, weight.to(self.device))])
        except BaseException:
            self.shutdown()  # so that the trainer does not wait for this worker
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        head: Any = getattr(self.model, "lm_head", None)
        if self.device.type == "cpu" and head is not None:
            # On a CPU vLLM computes with packed copies of the weights, and does not renew the copy of a tied head.
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
