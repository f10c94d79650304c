<?php

/**
 * The echo producer: sends every message back.
 *
 *     php echo.php /var/www/html/ws/echo.ws
 */

declare(strict_types=1);

require_once __DIR__ . '/../autoload.php';

$path = $argv[1] ?? '/var/www/html/ws/echo.ws';
$ws = new apachews\Server($path);
while ($event = $ws->dequeue()) {
    switch ($event->type()) {
        case ApacheWSAcceptEvent:
            break;
        case ApacheWSIOEvent:
            $data = $event->read();
            switch ($data) {
                case ApacheWSError:
                case ApacheWSConnectionClosed:
                    break;
                default:
                    $event->write($data);
                    break;
            }
            break;
        case ApacheWSNoData:
            break;
        case ApacheWSError:
            break;
        case ApacheWSConnectionClosed:
            break;
    }
}
