"""Loop nests (`compiler.loops`) as OpenCL C."""

from .nest import may_share, plan_nest
