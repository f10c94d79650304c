<?php

declare(strict_types=1);

require_once __DIR__ . '/../autoload.php';

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'apachews\\Tests\\')) {
        require __DIR__ . '/' . substr($class, 15) . '.php';
    }
});
