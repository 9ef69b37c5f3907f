"""What ``apply`` returns."""

from __future__ import annotations

from typing import Any

from torch import fx

from .errors import UsageError


class GatedModule(fx.GraphModule):
    """A gated graph, which can be copied and, as far as the graph it was made of can be, pickled."""

    def __reduce__(self) -> Any:
        unpicklable = [name for name, part in self.named_modules() if type(part).__module__.startswith("torch.export.")]
        if unpicklable:
            raise UsageError(
                f"what apply made of an exported program cannot be pickled, as {unpicklable[0]}, which torch.export "
                "put there, cannot. Save the state_dict, or the program (torch.export.save) and apply again; or gate a "
                "graph from torch.fx.symbolic_trace or make_fx."
            )
        self._forget_types_that_are_text()
        return super().__reduce__()

    def _forget_types_that_are_text(self) -> None:
        """Take away annotations that fx cannot import, as ``from __future__ import annotations`` leaves them."""
        textual = [node for node in self.graph.find_nodes(op="placeholder") if isinstance(node.type, str)]
        for node in textual:
            node.type = None
        if textual:
            self.recompile()
