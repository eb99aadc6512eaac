"""The two pages of the site."""

import os

from django.http import HttpResponseBadRequest, JsonResponse
from django.views.decorators.http import require_GET, require_http_methods

from .models import Order

# Read once, at the start: the answer tells what runs, not what lies on the disk by now.
VERSION = os.environ.get("MC_COMMIT", "")


@require_http_methods(["GET", "POST"])
def orders(request):
    """Lists the orders, or takes one."""
    if request.method == "POST":
        article = request.POST.get("article", "").strip()
        if not 0 < len(article) <= 100:
            return HttpResponseBadRequest("an article of 1 to 100 characters is needed\n")
        Order.objects.create(article=article)
    rows = Order.objects.order_by("id").values("id", "article", "confirmed_at")
    return JsonResponse({"version": VERSION, "orders": list(rows)})


@require_GET
def health(_request):
    """Asks the database, and tells who answers."""
    return JsonResponse({"ok": True, "version": VERSION, "orders": Order.objects.count()})
