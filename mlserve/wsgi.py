"""The web process: `granian --interface wsgi mlserve.wsgi:application`."""

from django.core.wsgi import get_wsgi_application

from mlserve import embedded

embedded.prepare_process()
application = get_wsgi_application()
