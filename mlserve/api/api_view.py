"""What every view of the API shares beyond REST framework's settings."""

from rest_framework.views import APIView


class ApiView(APIView):
    """Offers the methods that it defines and no OPTIONS: the OpenAPI document describes it better."""

    metadata_class = None
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]
