"""The router of a configuration: one case per kind."""

from mindmoe.moe.config import DmrConfig, ExpertChoiceConfig, MoeConfig, MogeConfig, RouterConfig, TopPConfig
from mindmoe.moe.router.assignment import Route
from mindmoe.moe.router.dmr import build_dmr_router
from mindmoe.moe.router.expert_choice import build_expert_choice_router
from mindmoe.moe.router.moge import build_moge_router
from mindmoe.moe.router.top_p import build_top_p_router
from mindmoe.moe.router.topk import build_topk_router


def build_router(moe: MoeConfig) -> Route:
    """Returns route(..) -> assignment."""
    match moe.router:
        case RouterConfig():
            return build_topk_router(moe)
        case MogeConfig():
            return build_moge_router(moe)
        case TopPConfig():
            return build_top_p_router(moe)
        case ExpertChoiceConfig():
            return build_expert_choice_router(moe)
        case DmrConfig():
            return build_dmr_router(moe)
