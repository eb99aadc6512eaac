"""What can be asked: `/` lists and takes orders, `/healthz` says whether this version and its database work."""

from django.urls import path

from orders import views

urlpatterns = [path("", views.orders), path("healthz", views.health)]
