"""GET /: the chat page."""

from fastapi import APIRouter
from starlette.responses import Response

from interlock.serve.page.shell import chat_page

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """A page that talks to this server."""
    document, headers = chat_page()
    return Response(document, media_type="text/html; charset=utf-8", headers=headers)
