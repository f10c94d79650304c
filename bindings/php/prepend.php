<?php

/**
 * For auto_prepend_file in php.ini: a program finds the library without a line that loads it.
 *
 * The ini file may have the setting apachews.prepended_before: the file that auto_prepend_file
 * named before, which this file loads too.
 */

declare(strict_types=1);

// PHP's development server (php -S) reads the same ini files; its pages load nothing.
if (PHP_SAPI === 'cli') {
    (static function (): void {
        $load = static function (string $class) use (&$load): void {
            if (!str_starts_with($class, 'apachews\\')) {
                return;
            }
            // The program may have another copy of the library, whose loader comes later: that
            // copy serves all classes, because functions cannot be defined twice.
            $loaders = spl_autoload_functions();
            foreach (array_slice($loaders, (int) array_search($load, $loaders, true) + 1) as $other) {
                $other($class);
                if (class_exists($class, false) || interface_exists($class, false)) {
                    return;
                }
            }
            if (!function_exists('apachews\publish')) {
                require_once __DIR__ . '/autoload.php';
            }
        };
        spl_autoload_register($load);
    })();
}

if (get_cfg_var('apachews.prepended_before')) {
    require get_cfg_var('apachews.prepended_before');
}
