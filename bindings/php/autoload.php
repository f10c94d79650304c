<?php

/**
 * Loads the library without Composer: require 'bindings/php/autoload.php'.
 */

declare(strict_types=1);

spl_autoload_register(static function (string $class): void {
    if (str_starts_with($class, 'apachews\\')) {
        $file = __DIR__ . '/src/' . strtr(substr($class, 9), '\\', '/') . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});
require_once __DIR__ . '/src/constants.php';
require_once __DIR__ . '/src/functions.php';
